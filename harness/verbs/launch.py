"""A run on several hosts, written for the engine that starts it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harness.received.text import word
from harness.verbs.answers import answer
from harness.verbs.options import (
    AllowOption,
    FetchOption,
    JsonOption,
    LastStepOption,
    NameOption,
    NetOption,
    OfflineOption,
    PatientOption,
    RecipeOption,
    SetOption,
    SlowerOption,
)

if TYPE_CHECKING:
    from harness.artifacts import Plan
    from harness.artifacts.launched import Launched
    from harness.launch.asked import Asked

Text = str | None
Number = int | None
EngineOption = Annotated[
    Literal["slurm", "kubernetes", "compose", "ray"],
    typer.Option("--engine", help="Who starts the processes: slurm, kubernetes, compose or ray."),
]
HostsOption = Annotated[int, typer.Option("--hosts", min=1, help="How many hosts; one process on each.")]
GpuOption = Annotated[
    Text, typer.Option("--gpu", help="Plan for these cards: h100:8 for eight of them in each host.")
]
GpusOption = Annotated[
    Number, typer.Option("--gpus", min=0, help="GPUs of each host, without a plan; 0 trains on CPUs.")
]
RunOption = Annotated[Path | None, typer.Option("--run", help="The run's directory, which all hosts see.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Where the files are written. Default: launch/NAME.")
]
ImageOption = Annotated[
    Text,
    typer.Option("--image", help="NAME@sha256:…; for Slurm (pyxis) also a .sqsh file; compose: any name."),
]
CpusOption = Annotated[
    Number, typer.Option("--cpus", min=1, help="Cores of each host. Slurm's default: the whole node.")
]
MemoryOption = Annotated[Number, typer.Option("--memory-gib", min=1, help="Memory of each host.")]
PartitionOption = Annotated[Text, typer.Option("--partition", help="Slurm's partition.")]
AccountOption = Annotated[Text, typer.Option("--account", help="Slurm's account.")]
TimeOption = Annotated[Text, typer.Option("--time", help="Slurm's time limit, such as 1-00:00:00.")]
ClaimOption = Annotated[
    Text, typer.Option("--claim", help="Kubernetes: the volume claim (ReadWriteMany) that all pods mount.")
]
NamespaceOption = Annotated[Text, typer.Option("--namespace", help="Kubernetes: the namespace.")]
SecretOption = Annotated[
    Text, typer.Option("--secret", help="Kubernetes: a secret whose entries become variables.")
]
UserOption = Annotated[
    Text, typer.Option("--user", help="UID:GID in containers. Default: 1000:1000; compose: yours.")
]
CoordinatorOption = Annotated[
    Text,
    typer.Option(
        "--coordinator",
        help="Compose on several machines: HOST[:PORT] of the first. Default: all on one machine.",
    ),
]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", help="NAME=VALUE for each process (may be given again).")
]
RestartsOption = Annotated[
    int,
    typer.Option("--restarts", min=0, help="How often a run that failed after it began is started again."),
]
GraceOption = Annotated[
    int | None,
    typer.Option(
        "--grace", min=10, help="Seconds that a stop may take: a checkpoint is saved. Default: 900."
    ),
]
SubmitOption = Annotated[
    bool, typer.Option("--submit", help="Slurm: submit it and follow it. Ctrl-C leaves the job running.")
]


def launch(
    engine: EngineOption,
    hosts: HostsOption,
    recipe: RecipeOption = None,
    sets: SetOption = None,
    gpu: GpuOption = None,
    gpus: GpusOption = None,
    run: RunOption = None,
    name: NameOption = None,
    steps: LastStepOption = None,
    allow: AllowOption = None,
    patient: PatientOption = False,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    net: NetOption = None,
    allow_slower: SlowerOption = False,
    out: OutOption = None,
    image: ImageOption = None,
    cpus: CpusOption = None,
    memory_gib: MemoryOption = None,
    partition: PartitionOption = None,
    account: AccountOption = None,
    time: TimeOption = None,
    claim: ClaimOption = None,
    namespace: NamespaceOption = None,
    secret: SecretOption = None,
    user: UserOption = None,
    coordinator: CoordinatorOption = None,
    env: EnvOption = None,
    restarts: RestartsOption = 3,
    grace: GraceOption = None,
    submit: SubmitOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what an engine takes to train on several hosts; with Slurm, submit and follow it.

    Exit code 1 when a submitted job ends badly.
    """
    from harness.launch.ask import Wanted, ask
    from harness.launch.write import launched, write
    from harness.show.launched import launched_table

    flags = {"--patient": patient, "--fetch": fetch, "--offline": offline}
    options = _train_options(allow or [], steps, net, [flag for flag, given in flags.items() if given])
    wanted = Wanted(
        engine, hosts, run, name, recipe, sets or [], options, gpu, gpus, out, env or [], user, submit
    )
    fields: dict[str, Any] = {"image": image, "cpus": cpus, "memory_gib": memory_gib}
    fields |= {"time": time, "partition": partition}
    fields |= {"account": account, "claim": claim, "namespace": namespace, "secret": secret}
    fields |= {"coordinator": coordinator, "restarts": restarts}
    fields |= {} if grace is None else {"grace_s": grace}
    asked = ask(wanted, partial(_plan, net, allow_slower), fields)
    made = launched(asked, write(asked))
    if submit:
        made = _followed(asked, made)
    answer(made, as_json, launched_table)
    raise typer.Exit(0 if made.state in (None, "COMPLETED") else 1)


def _train_options(allow: list[str], steps: int | None, net: str | None, flags: list[str]) -> list[str]:
    """What `harness train` is told beside the run, the recipe and its changes.

    Raises: HarnessError "check-unknown", "net-rate-invalid": the hosts would, after the job has waited.
    """
    from harness.doctor.examine import check_allowed
    from harness.plan.cluster import rate

    check_allowed(allow)
    if net is not None:
        rate(net)
    valued = {"--steps": steps, "--net": net}
    given = [f"{name}={value}" for name, value in valued.items() if value is not None]
    return [*(f"--allow={check}" for check in allow), *given, *flags]


def _plan(net: str | None, slower: bool, gpu: str, recipe: str, sets: list[str]) -> Plan:
    from harness.flow.find import trainer_of
    from harness.flow.trainer import Question
    from harness.plan.cluster import rate

    asked: dict[str, Any] = {"gpu": gpu, "exact": False, "recompile": False}
    asked |= {"device": None, "vram_bytes": None, "host_ram_bytes": None}
    asked |= {} if net is None else {"net": rate(net)}
    asked |= {"slower": True} if slower else {}
    return trainer_of(None).answer(Question(None, recipe, sets, asked, wait=False))


def _followed(asked: Asked, made: Launched) -> Launched:
    """Submits the job and says how it goes, until it ends or the person does not want to hear more."""
    from harness.launch.submit import follow, orders, submit
    from harness.launch.write import keep
    from harness.show.progress import Progress

    console, script = Progress(), Path(made.files[0])
    job = submit(script)
    log = Path(asked.out) / f"{job}.log"
    made = keep(asked, made.model_copy(update={"job": job}))
    console.say(f"submitted job {job}; Ctrl-C leaves it running; its log: {log}")
    try:
        ended = follow(job, log, console.say)
    except KeyboardInterrupt:
        console.say(f"job {job} goes on. To follow, stop or cancel it:")
        for order in orders(job, word(log)):
            console.say(f"  {order}")
        return made
    return keep(asked, made.model_copy(update={"state": ended.state}))
