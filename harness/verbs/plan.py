"""How a machine carries a recipe out: plan."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.artifacts.plan import Backend
from harness.errors import HarnessError
from harness.received.text import one_line, word
from harness.run.cuda import check_device
from harness.verbs.answers import answer, rundir
from harness.verbs.options import (
    DeviceOption,
    JsonOption,
    NetOption,
    RecipeOption,
    RunOption,
    SetOption,
    SlowerOption,
    gib_bytes,
)

GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help=(
            "Plan for this card, which need not be here: rtx_a6000, or a40:8 for eight; h100:8x2 for eight in"
            " each of two machines."
        ),
    ),
]
VramOption = Annotated[
    float | None,
    typer.Option("--vram-gib", min=0.25, help="GiB of the card, instead of what NVML or the table says."),
]
HostRamOption = Annotated[
    float | None,
    typer.Option("--host-ram-gib", min=0.25, help="GiB of host memory, instead of what is available here."),
]
ExactOption = Annotated[
    bool,
    typer.Option("--exact", help="Only plans that change nothing of the recipe; exit code 1 when none fits."),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="Ask the compiler even where the atlas knows.")
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait", help="Wait until others leave the card, if an idle card would allow a better plan."
    ),
]
BackendOption = Annotated[
    Backend | None,
    typer.Option(
        "--backend",
        help=(
            "ours; or openpi: whether upstream's own step fits, as it is configured. Default: the run's,"
            " else ours."
        ),
    ),
]
MatrixOption = Annotated[
    bool,
    typer.Option(
        "--matrix",
        help="What every card can train, from the atlas: a Markdown table, and a picture beside it.",
    ),
]


ServeOption = Annotated[
    bool,
    typer.Option(
        "--serve", help="Whether the card can serve the policy, and how fast: bytes by the compiler, a model."
    ),
]
BatchOption = Annotated[
    int | None, typer.Option("--batch", help="Rows of a call, with --serve: clients answered at once.")
]


# Options that change one plan, beside those that are flags.
_VALUED = ("--recipe", "--gpu", "--vram-gib", "--host-ram-gib", "--device", "--net", "--set")


def write_matrix(run: Path | None) -> None:
    """Prints the table as Markdown, and writes the picture into the run, else into this directory.

    Raises: HarnessError "atlas-stale".
    """
    from harness.plan.cards import CARDS
    from harness.plan.matrix import cells, words
    from harness.show.cards_picture import picture
    from harness.show.matrix import markdown
    from harness.units import format_bytes

    table = cells()
    print(markdown(table, words, lambda card: format_bytes(CARDS[card].memory_bytes)))
    path = (run or Path()) / "hardware.png"
    picture(table, path)
    print(one_line(str(path)), file=sys.stderr)


def _check_together(serve: bool, batch: int | None, others: list[str]) -> None:
    """Refuses options that say nothing together.

    Raises: HarnessError "options-together".
    """
    wrong = ["--batch"] if batch is not None and not serve else others if serve else []
    if wrong:
        raise HarnessError(
            "options-together",
            f"{' and '.join(wrong)} is not for a plan that serves"
            if serve
            else "--batch is for a plan that serves",
            got=" ".join([*(["--serve"] if serve else []), *wrong]),
            need="--serve with --gpu, --device, --vram-gib, --batch and --compile",
            fix="harness plan --serve --gpu rtx_4090 --batch 1",
        )


def _check_several(gpu: str | None, others: list[str]) -> None:
    """Refuses options on the network between machines where there is one machine.

    Raises: HarnessError "options-together".
    """
    if others and not re.search(r":\d+x\d+$", gpu or ""):
        raise HarnessError(
            "options-together",
            f"{' and '.join(others)} is for a plan of several machines",
            got=f"--gpu {gpu}" if gpu else "no --gpu",
            need="--gpu NAME:COUNTxHOSTS",
            fix="harness plan --gpu h100:8x2 --net 100Gb",
        )


def _check_alone(flags: dict[str, bool], values: list[object]) -> None:
    """Refuses options that the table of all cards would leave unheard. `values` are those of `_VALUED`.

    Raises: HarnessError "options-together".
    """
    given = flags | {name: value is not None for name, value in zip(_VALUED, values, strict=True)}
    wrong = [name for name, there in given.items() if there]
    if wrong:
        raise HarnessError(
            "options-together",
            f"{' and '.join(wrong)} says nothing to the table of all cards",
            got=" ".join(["--matrix", *wrong]),
            need="--matrix alone, or with --run for its picture",
            fix="harness plan --matrix; or leave --matrix out",
        )


def _check_device(gpu: str | None, device: str | None) -> None:
    """Refuses a device that a card is not.

    Raises: HarnessError "device-unknown", "options-together".
    """
    check_device(device)
    if gpu is not None and device == "cpu":
        raise HarnessError(
            "options-together",
            "a plan is for a card or for the CPU",
            got=f"--gpu {gpu} --device cpu",
            need="one of the two",
            fix=f"harness plan --gpu {word(gpu)}; or harness plan --device cpu",
        )


def plan(
    recipe: RecipeOption = None,
    gpu: GpuOption = None,
    vram_gib: VramOption = None,
    host_ram_gib: HostRamOption = None,
    exact: ExactOption = False,
    compile_: CompileOption = False,
    wait: WaitOption = False,
    backend: BackendOption = None,
    matrix: MatrixOption = False,
    serve: ServeOption = False,
    batch: BatchOption = None,
    net: NetOption = None,
    allow_slower: SlowerOption = False,
    device: DeviceOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """How this machine would carry out a recipe, in bytes that the compiler says; exit code 1 when it does
    not fit.
    """
    from harness.flow.find import TRAINERS, trainer_of
    from harness.flow.trainer import Question
    from harness.plan.cluster import rate as network_rate
    from harness.show.plan import plan_view
    from harness.show.serving_plan import serving_view

    others = {"--matrix": matrix, "--exact": exact, "--wait": wait, "--backend": backend is not None}
    several = {"--net": net is not None, "--allow-slower": allow_slower}
    others |= several
    _check_together(serve, batch, [name for name, given in others.items() if given])
    _check_device(gpu, device)
    if matrix:
        others |= {"--compile": compile_, "--json": as_json, "--matrix": False}
        _check_alone(others, [recipe, gpu, vram_gib, host_ram_gib, device, net, sets])
        return write_matrix(run)
    asked: dict[str, Any] = {
        "gpu": gpu,
        "device": device,
        "vram_bytes": gib_bytes(vram_gib),
        "host_ram_bytes": gib_bytes(host_ram_gib, "--host-ram-gib"),
        "exact": exact,
        "recompile": compile_,
    }
    # Only where it is given: the hash of what a plan of one machine was asked stays what it was.
    asked |= {} if net is None else {"net": network_rate(net)}
    asked |= {"slower": True} if allow_slower else {}
    _check_several(gpu, [name for name, given in several.items() if given])
    if serve:
        from harness.flow.serving import plan_of

        planned = plan_of(Question(run, recipe, sets or [], asked, wait=False), 1 if batch is None else batch)
        answer(planned, as_json, serving_view)
        raise typer.Exit(0 if planned.fits is not False else 1)
    # It may be asked of either trainer about any run.
    trainer = TRAINERS[backend] if backend else trainer_of(None if run is None else rundir(run))
    made = trainer.answer(Question(run, recipe, sets or [], asked, wait))
    answer(made, as_json, plan_view)
    raise typer.Exit(0 if made.chosen else 1)
