"""An evaluation in order: the simulator certifies itself, the policy answers once, episodes, the verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from harness.artifacts.episodes import Episode, Key
from harness.artifacts.evaluation import Evaluation, Rate
from harness.artifacts.setting import Asked, Setting
from harness.artifacts.setting import Protocol as Rules
from harness.errors import HarnessError
from harness.evaluate.drive import Order, said, strange
from harness.evaluate.judge import check_another, judge, side_of
from harness.evaluate.pool import Means, Pool
from harness.evaluate.rates import rates_of
from harness.evaluate.record import Recorded, put_in_order, read_recorded, recording_in, reserved
from harness.evaluate.schedule import Dispatch, keys, remaining
from harness.evaluate.simulator import Simulator, Start
from harness.evaluate.source import Acting, Source
from harness.evaluate.verdict import MARGIN
from harness.evaluate.videos import Kept
from harness.received.text import one_line
from harness.run.directory import RunDir
from harness.simulate import scenes
from harness.simulate.protocol import Values, check

# Golden frames of each suite, a settling bowl and a recorded episode: 25 s on a quiet machine.
_CERTIFY_S = 1800.0


class Console(Protocol):
    """Who is told how an evaluation goes."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def measured(self, done: int, asked: int, rates: list[Rate], left_s: float | None) -> None: ...


class Wish(NamedTuple):
    """What is evaluated, where it is written, and what it is compared with.

    `rules` are the protocol's values with every departure, which `deviations` name. `patience_s` is how long
    the simulator may take to answer. `against`, `margin` and `sequential` are those of `judge`.
    """

    asked: Asked
    rules: Rules
    deviations: list[str]
    out: RunDir
    workers: int = 1
    videos: Kept = "failures"
    resume: bool = False
    against: RunDir | str | None = None
    margin: float = MARGIN
    sequential: bool = False
    patience_s: float = 300.0


class Found(NamedTuple):
    """The simulator as it certified itself."""

    versions: dict[str, str]
    renderer: str | None
    notes: list[str]


def measure(wish: Wish, source: Source, start: Start, console: Console) -> Evaluation:
    """The judged evaluation of all asked episodes. `start` makes a process of the simulator.

    Raises: HarnessError of the directory, of the simulator, of the policy and of `judge`.
    """
    values = check(wish.rules.values)
    check_another(wish.out, wish.against)
    with reserved(wish.out, resume=wish.resume) as before:
        _check_order(wish, before)
        if before is not None and _is_done(before, wish, source):
            console.say(f"every asked episode was measured before, in {wish.out.path}")
            wish.out.write(before.setting.model_copy(update={"asked": wish.asked}))
        else:
            _episodes(wish, source, start, console, values, before)
        put_in_order(wish.out)
        return judge(wish.out, wish.against, margin=wish.margin, sequential=wish.sequential)


def _check_order(wish: Wish, before: Recorded | None) -> None:
    """Refuses a paired test over other tasks, or in another order, than the one that has been looked at.

    Each of the two would err as often as it says, and both together more often. More episodes of a task come
    behind those that were looked at, so the test goes on.

    Raises: HarnessError "evaluation-other".
    """
    if not wish.sequential or before is None or not before.episodes.found:
        return
    was, now = before.setting.asked, wish.asked
    if was.order != "mixed" or (was.tasks, was.seed) == (now.tasks, now.seed):
        return
    raise HarnessError(
        "evaluation-other",
        f"{wish.out.path} holds a paired test over other tasks or in another order; a second one on the same"
        " episodes would err more often than it says",
        got=f"{_many_tasks(now)}, seed {now.seed}",
        need=f"{_many_tasks(was)}, seed {was.seed}",
        fix="the same --suites, --tasks and --seed; or another directory, or without --sequential",
    )


def _many_tasks(asked: Asked) -> str:
    named = (f"{suite}/{','.join(map(str, tasks))}" for suite, tasks in sorted(asked.tasks.items()))
    return one_line(" ".join(named))[:300]


def _is_done(before: Recorded, wish: Wish, source: Source) -> bool:
    """Whether the directory has every asked episode of this policy and protocol."""
    setting = before.setting
    same = (setting.evaluated.kind, setting.evaluated.name) == (source.kind, source.name) and all(
        getattr(setting.evaluated, field) == value for field, value in source.known.items()
    )
    seed = setting.evaluated.noise_seed
    return (
        same
        and setting.protocol == wish.rules
        and seed in (None, wish.asked.seed)
        and not remaining(wish.asked, before.episodes.found.values())
    )


def _episodes(
    wish: Wish, source: Source, start: Start, console: Console, values: Values, before: Recorded | None
) -> None:
    """Measures what is left."""
    with source.opened(wish.asked.seed, values.replan_steps) as answers:
        # A checkpoint is loaded meanwhile.
        found = certified(start, wish.rules.name, wish.patience_s, console)
        acting = answers()
        setting = _setting(wish, acting, found, values, before)
        for deviation in setting.deviations:
            console.warn(f"deviation: {deviation}")
        with recording_in(wish.out, setting, before) as recorder:
            left = remaining(wish.asked, recorder.episodes.found.values())
            course = _Course(wish, console, recorder.episodes.measured, keys(wish.asked))
            order = Order(
                "remote" if acting.connect else source.kind,
                wish.rules.values,
                acting.form,
                Fraction(values.control_hz, values.replan_steps),
            )
            means = Means(
                lambda: _ready(start, wish.patience_s, found),
                acting.connect,
                acting.died,
                course.heard,
                course.enough,
                console.warn,
            )
            pool = Pool(
                recorder,
                Dispatch(left, mixed=wish.asked.order == "mixed"),
                order,
                means,
                wish.videos,
            )
            console.say(f"{len(left):,} episodes to drive, {wish.workers} at a time, into {wish.out.path}")
            try:
                pool.run(min(wish.workers, len(left)))
            finally:
                wish.out.write(setting.model_copy(update={"prompts": _prompts(setting, pool.prompts)}))
        if pool.lost_videos:
            console.warn(f"{pool.lost_videos} videos were not kept; every outcome is recorded")


class _Course:
    """How the evaluation goes: rates so far, time left, and whether the sequential test has stopped."""

    def __init__(self, wish: Wish, console: Console, before: list[Episode], order: list[Key]) -> None:
        self._wish, self._console, self._order = wish, console, order
        # A resume may ask for others than before; what is no longer asked counts nowhere.
        asked = set(order)
        self._found = {episode.key: episode for episode in before if episode.key in asked}
        self._began, self._driven = time.monotonic(), 0
        other = wish.against if wish.sequential and isinstance(wish.against, RunDir) else None
        self._other = None if other is None else read_recorded(other)
        # A resume may find that it has stopped already.
        self._stopped = self._other is not None and self._test()

    def heard(self, episode: Episode) -> None:
        self._driven += 1
        self._found[episode.key] = episode
        _, suites, total = rates_of(self._order, self._found.values())
        pace_s = (time.monotonic() - self._began) / self._driven
        done = len(self._found)
        self._console.measured(
            done,
            len(self._order),
            [*suites, *([total] if len(suites) > 1 else [])],
            pace_s * (len(self._order) - done),
        )
        if self._other is not None and episode.measured:
            self._stopped = self._test()

    def enough(self) -> bool:
        return self._stopped

    def _test(self) -> bool:
        from harness.evaluate.weigh import Side, in_order

        assert self._other is not None
        ours = Side(list(self._found.values()), self._order)
        return in_order(ours, side_of(self._other), self._order, self._wish.margin).verdict is not None


def certified(start: Start, protocol: str, patience_s: float, console: Console) -> Found:
    """The simulator, after it has shown by its behaviour that it is the one of the published figures.

    Raises: HarnessError "simulator-not-certified" with the first thing that is wrong; those of the process.
    """
    console.say("the simulator certifies itself")
    simulator = Simulator(start, patience_s)
    try:
        ready = _hello(simulator)
        answer, _ = simulator.ask({"do": "certify", "protocol": protocol}, patience_s=_CERTIFY_S)
    finally:
        simulator.end()
    listed = answer.get("findings")
    findings = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if answer.get("is") == "error":
        raise said(answer)
    wrong = [each for each in findings if each.get("ok") is not True]
    if wrong or not findings:
        first: Mapping[str, Any] = wrong[0] if wrong else {}
        more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
        raise HarnessError(
            "simulator-not-certified",
            "this simulator is not the one that success rates are published for:"
            f" {_line(first.get('name'), 'it said nothing')}{more}; no episode was driven",
            got=_line(first.get("got"), "nothing"),
            need=_line(first.get("need"), "every check passed"),
            fix=_line(first.get("fix"), "the simulator of this version: docker compose run --rm evaluate"),
        )
    console.say(f"certified: {', '.join(_line(each.get('name'), '') for each in findings)}")
    notes = [_line(each["note"], "") for each in findings if each.get("note")]
    return ready._replace(notes=notes)


def _ready(start: Start, patience_s: float, like: Found) -> Simulator:
    """A process of the simulator that draws and computes as the certified one.

    Raises: HarnessError "simulator-differs"; those of the process.
    """
    simulator = Simulator(start, patience_s)
    try:
        found = _hello(simulator)
        if found[:2] != like[:2]:
            raise HarnessError(
                "simulator-differs",
                "a process of the simulator is not like the one that certified itself",
                got=f"{found.versions}, {found.renderer}",
                need=f"{like.versions}, {like.renderer}",
                fix="leave the simulator's environment as it is while an evaluation runs; then --resume",
            )
    except BaseException:
        simulator.end(kill=True)
        raise
    return simulator


def _hello(simulator: Simulator) -> Found:
    answer, _ = simulator.ask({"do": "hello"})
    if answer.get("is") == "error":
        raise said(answer)
    versions, renderer = answer.get("versions"), answer.get("renderer")
    if answer.get("is") != "ready" or not isinstance(versions, dict):
        raise strange(answer, "its versions and what draws")
    named = {_line(name, ""): _line(version, "") for name, version in versions.items()}
    return Found(named, _line(renderer, "") if renderer else None, [])


def _line(value: Any, otherwise: str) -> str:
    return one_line(str(value))[:500] if value not in (None, "") else otherwise


def _setting(wish: Wish, acting: Acting, found: Found, values: Values, before: Recorded | None) -> Setting:
    unknown = dict(acting.unknown)
    if found.renderer is None:
        unknown["renderer"] = "the simulator's process does not say what draws"
    return Setting(
        evaluated=acting.evaluated,
        protocol=wish.rules,
        versions=found.versions,
        renderer=found.renderer,
        scenes_sha256=scenes.sha256(values),
        asked=wish.asked,
        deviations=[*wish.deviations, *acting.deviations, *found.notes],
        prompts=before.setting.prompts if before else {},
        unknown=unknown,
    )


def _prompts(setting: Setting, heard: Mapping[tuple[str, int], str]) -> dict[str, list[str]]:
    """The words of each task by suite; empty for a task that nobody has driven."""
    found = {suite: list(words) for suite, words in setting.prompts.items()}
    for (suite, task), words in sorted(heard.items()):
        listed = found.setdefault(suite, [])
        listed += [""] * (task + 1 - len(listed))
        listed[task] = one_line(words)[:500]
    return found
