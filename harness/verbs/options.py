"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.errors import HarnessError

# A PiB; no machine has it, and beyond it a float is no count of bytes.
_MOST_GIB = 2**20
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Run directory; the verb's artifact is written there.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the artifact as JSON on stdout, and nothing else there.")
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="A shipped recipe or a YAML file. Default: $HARNESS_RECIPE, else smoke."),
]
OwnRecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe", help="A shipped recipe or a YAML file. Default: the one that the checkpoint records."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change one key of the recipe: train.seed=7 (may be given again)."),
]
DatasetOption = Annotated[
    str | None,
    typer.Option("--dataset", help="Directory, hub id[@revision], or 'sample'; instead of the recipe's."),
]
FetchOption = Annotated[
    bool,
    typer.Option(
        "--fetch",
        help=(
            "Also fetch what a run or checkpoint names that you did not type: datasets, weights, base"
            " weights. Each is named first."
        ),
    ),
]
OfflineOption = Annotated[
    bool,
    typer.Option(
        "--offline", help="No network at all: what is not on this machine is refused. As HARNESS_OFFLINE=1."
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        "--base", help="Where the base weights are now, for a step that holds only trained parameters."
    ),
]
StepsOption = Annotated[int, typer.Option("--steps", help="Euler steps from noise to actions.")]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="A run, a checkpoint directory or one step of it, ours or openpi's; local, gs:// or https://."
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu or cuda; default: the GPU when there is one.")
]
NetOption = Annotated[
    str | None,
    typer.Option(
        "--net",
        help="Rate of each machine's network, one way: 100Gb. Default: what its interfaces say, else 100Gb.",
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--name", help="Name of the run below $HARNESS_RUNS (default ./runs).")
]
LastStepOption = Annotated[
    int | None, typer.Option("--steps", help="Train up to this step instead of the recipe's.")
]
PatientOption = Annotated[
    bool,
    typer.Option("--patient", help="Go on even when steps take ten times longer than the plan expects."),
]
SlowerOption = Annotated[
    bool,
    typer.Option(
        "--allow-slower", help="A plan for several machines even where one of them alone would be faster."
    ),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", help="Go on in spite of the errors of this check (may be given again); recorded."
    ),
]


def gib_bytes(gib: float | None, option: str = "--vram-gib") -> int | None:
    """Bytes of the GiB that were given to `option`, where they were.

    Raises: HarnessError "memory-invalid" for what is no amount of memory.
    """
    if gib is None:
        return None
    if not gib <= _MOST_GIB:
        raise HarnessError(
            "memory-invalid",
            f"{gib} GiB is no amount of memory",
            got=f"{option} {gib}",
            need=f"at most {_MOST_GIB:,} GiB",
            fix="--vram-gib 24" if option == "--vram-gib" else "--host-ram-gib 64",
        )
    return int(gib * 2**30)
