"""Episodes in the simulator, with a verdict: evaluate."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from harness.errors import HarnessError
from harness.recipe.sampling import STEPS
from harness.verbs.answers import answer, with_dataset
from harness.verbs.options import (
    BaseOption,
    DatasetOption,
    DeviceOption,
    FetchOption,
    JsonOption,
    OfflineOption,
    OwnRecipeOption,
    SetOption,
    StepsOption,
)

if TYPE_CHECKING:
    import signal

    from harness.artifacts import Evaluation
    from harness.artifacts.setting import Asked, Policy
    from harness.artifacts.setting import Protocol as Rules
    from harness.evaluate.source import Source
    from harness.show.evaluating import Evaluating

# What an operating system waits for at once is limited. Nobody waits longer for an answer.
_MOST_PATIENCE_S = 7 * 86_400.0
# Each worker needs about 2 GB of memory; more than this is asked for by a number.
_MOST_BY_ITSELF = 16
PathArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="STEP|RUN",
        help="A run, a checkpoint directory or one step of it, as `harness serve` takes it.",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", help="Evaluate the policy at ws://HOST:PORT instead: ours, or openpi's own."),
]
KeyOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="HARNESS_API_KEY_FILE",
        help="File with the key of --server in its first line.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help=(
            "A control instead of a checkpoint. replay: recorded actions, which must all succeed. zero: the"
            " arm stands still, which must never. scripted: a policy that looks at the simulator's state."
        ),
    ),
]
SuitesOption = Annotated[
    str, typer.Option("--suites", help="Suites with commas between them: spatial, object, goal, 10, 90.")
]
TasksOption = Annotated[
    str | None,
    typer.Option("--tasks", help="Only these tasks: 0,3-5 of each suite, or goal/3,10/0-2. Default: all."),
]
EpisodesOption = Annotated[
    int | None,
    typer.Option("--episodes", help="Initial states of each task, from the first. Default: the protocol's."),
]
RepeatsOption = Annotated[
    int, typer.Option("--repeats", help="Drive each scene so often, each time with other noise.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", help="Simulators at once, a core each. The result does not depend on it. Default: half."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="What the noise of every query follows from.")]
ProtocolOption = Annotated[
    str, typer.Option("--protocol", help="Whose evaluation is repeated: openpi or lerobot.")
]
DepartOption = Annotated[
    list[str] | None,
    typer.Option(
        "--depart",
        help=(
            "Depart from one value of the protocol: max_steps.libero_10=100 (may be given again). It is named"
            " in the result, and compared with no other protocol."
        ),
    ),
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        "--compare",
        help="Another evaluation, a run that has one, or the published claim openpi:pi05_libero.",
    ),
]
MarginOption = Annotated[
    float | None,
    typer.Option(
        "--margin", help="A rate lower by more than this share is not reproduced. Default: 0.02, two points."
    ),
]
SequentialOption = Annotated[
    bool,
    typer.Option(
        "--sequential",
        help="Mix the tasks, pair each scene with --compare, and stop as soon as the answer is known.",
    ),
]
VideosOption = Annotated[
    str, typer.Option("--videos", help="Which videos are kept: failures, all or none; one file an episode.")
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "--run",
        help="Directory of this evaluation. Default: evaluations/NAME in the run, else beside the runs.",
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the evaluation in that directory; what was not measured is asked again."
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch",
        help=(
            "Queries that are computed at once. Another number rounds otherwise, so it is part of what is"
            " measured; --workers is not."
        ),
    ),
]
PatienceOption = Annotated[
    float,
    typer.Option("--patience", min=1, help="Seconds that the simulator or the server may take to answer."),
]


def evaluate(
    path: PathArgument = None,
    server: ServerOption = None,
    api_key_file: KeyOption = None,
    policy: PolicyOption = None,
    suites: SuitesOption = "spatial,object,goal,10",
    tasks: TasksOption = None,
    episodes: EpisodesOption = None,
    repeats: RepeatsOption = 1,
    workers: WorkersOption = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = "openpi",
    depart: DepartOption = None,
    compare: CompareOption = None,
    margin: MarginOption = None,
    sequential: SequentialOption = False,
    videos: VideosOption = "failures",
    out: OutOption = None,
    resume: ResumeOption = False,
    batch: BatchOption = 1,
    steps: StepsOption = STEPS,
    patience: PatienceOption = 300.0,
    dataset: DatasetOption = None,
    recipe: OwnRecipeOption = None,
    base: BaseOption = None,
    device: DeviceOption = None,
    sets: SetOption = None,
    fetch: FetchOption = False,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Drive a policy in the LIBERO simulator, and say how often it succeeds, and whether that reproduces.

    The simulator certifies itself first. Every episode is a line of episodes.jsonl, the same in any order and
    for any number of workers. Ctrl-C or SIGTERM keeps all but the episodes under way; --resume goes on. Exit
    code 0: reproduces, above, or compared with nothing. 1: below, inconclusive, not comparable, or episodes
    that could not be measured. 2: it could not be done.
    """
    from harness.evaluate.options import asked_of, policy_of, rules_of
    from harness.received.consent import grant, hear
    from harness.show.evaluation import evaluation_table

    hear(fetch=fetch, offline=offline)
    grant(base)
    kind, patience = policy_of(path, server, policy), min(patience, _MOST_PATIENCE_S)
    rules = rules_of(protocol, depart or [])
    asked = asked_of(kind, suites, tasks, episodes, rules[0], repeats=repeats, seed=seed, mixed=sequential)
    options = _Options(**{name: value for name, value in locals().items() if name in _Options._fields})
    found = _measured(options)
    answer(found, as_json, evaluation_table)
    raise typer.Exit(_code(found))


class _Options(NamedTuple):
    """What was typed, checked as far as it can be without opening anything."""

    path: str | None
    server: str | None
    api_key_file: Path | None
    kind: Policy
    rules: tuple[Rules, list[str]]
    asked: Asked
    depart: list[str] | None
    workers: int | None
    compare: str | None
    margin: float | None
    sequential: bool
    videos: str
    out: Path | None
    resume: bool
    batch: int
    steps: int
    patience: float
    dataset: str | None
    recipe: str | None
    base: str | None
    device: str | None
    sets: list[str] | None
    fetch: bool
    offline: bool


def _measured(options: _Options) -> Evaluation:
    """The judged evaluation."""
    from harness.evaluate.judge import check_judged
    from harness.evaluate.measure import Wish, measure
    from harness.evaluate.options import against_of, kept_of
    from harness.evaluate.schedule import check_workers
    from harness.evaluate.verdict import MARGIN
    from harness.run.directory import RunDir
    from harness.show.evaluating import Evaluating
    from harness.simulate.boot import python, start
    from harness.supervise.signals import stop_requests

    workers = options.workers if options.workers is not None else _half_of_the_cores()
    check_workers(workers)
    videos, against = kept_of(options.videos), against_of(options.compare)
    margin = MARGIN if options.margin is None else options.margin
    check_judged(against, margin, sequential=options.sequential)
    python()
    with stop_requests(_stopped, once=True), Evaluating() as console:
        source, out = _source(options, console)
        wish = Wish(
            options.asked,
            *options.rules,
            RunDir(out),
            workers,
            videos,
            options.resume,
            against,
            margin,
            options.sequential,
            options.patience,
        )
        return measure(wish, source, lambda: start(subprocess.PIPE), console)


def _source(options: _Options, console: Evaluating) -> tuple[Source, Path]:
    """Whose episodes are driven, and the directory of the evaluation."""
    from harness.evaluate.options import directory_of
    from harness.evaluate.remote import Address
    from harness.evaluate.source import of_control, of_server
    from harness.serve.access import key_in

    def directory(run: Path | None, tag: str) -> Path:
        departures = [part.partition("=")[0::2] for part in options.depart or []]
        return options.out or directory_of(
            run, options.kind, tag, options.rules[0], options.asked, dict(departures)
        )

    if options.kind == "checkpoint":
        return _checkpoint(options, console, directory)
    if options.server is None:
        return of_control(options.kind), directory(None, options.kind)
    key = None if options.api_key_file is None else key_in(options.api_key_file)
    return of_server(Address(options.server, key, options.patience)), directory(None, "server")


def _checkpoint(
    options: _Options, console: Evaluating, directory: Callable[[Path | None, str], Path]
) -> tuple[Source, Path]:
    """The checkpoint, checked without its weights."""
    from harness.checkpoint.locate import locate, recipe_of
    from harness.data.dataset import open_for
    from harness.evaluate.schedule import MOST_WORKERS
    from harness.evaluate.source import Checkpoint, of_checkpoint
    from harness.serve.open import Wish, check_wish

    check_wish(Wish(options.steps, options.batch))
    located = locate(str(options.path))
    overrides = with_dataset(options.sets, options.dataset)
    own = recipe_of(located, options.recipe, overrides)
    data = open_for(own.parts()[0])[1] if options.dataset is not None else None
    given = {
        "--recipe": options.recipe,
        "--base": options.base,
        "--device": options.device,
        "--dataset": options.dataset,
        "--max-clients": str(MOST_WORKERS + 1),
    }
    serving = [part for name, value in given.items() if value is not None for part in (name, value)]
    serving += [part for each in options.sets or [] for part in ("--set", each)]
    serving += [name for name, value in (("--fetch", options.fetch), ("--offline", options.offline)) if value]
    steps = "" if options.steps == STEPS else f"-{options.steps}steps"
    step = "checkpoint" if located.step is None else f"step{located.step}"
    out = directory(located.run, f"{step}{steps}")
    checkpoint = Checkpoint(located, own, serving, options.steps, options.batch)
    return of_checkpoint(checkpoint, out, options.patience, console.say, data), out


def _half_of_the_cores() -> int:
    return max(1, min(len(os.sched_getaffinity(0)) // 2, _MOST_BY_ITSELF))


def _stopped(heard: signal.Signals) -> None:
    raise HarnessError(
        "stopped",
        f"stopped by {heard.name}; the episodes under way are lost, all others are kept",
        fix="the same command with --resume goes on",
    )


def _code(found: Evaluation) -> int:
    """0 for a good answer, or none that was asked for; 1 for another, or for episodes without an outcome."""
    if found.verdict is not None:
        return 0 if found.verdict in ("reproduces", "above") else 1
    return 1 if found.all.errors or found.all.missing else 0
