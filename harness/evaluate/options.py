"""What a person types for `harness evaluate`, as suites, tasks, departures and directories."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from harness.artifacts.setting import Asked, Policy, Value
from harness.artifacts.setting import Protocol as Rules
from harness.errors import HarnessError
from harness.evaluate.claims import CLAIMS, OPENPI, claim_of
from harness.evaluate.drive import CONTROLS
from harness.evaluate.schedule import asked
from harness.evaluate.videos import KEPT, Kept
from harness.received.text import word
from harness.run.directory import RunDir, runs_root
from harness.run.evaluations import EVALUATIONS, evaluations_of, is_evaluation
from harness.simulate import controls
from harness.simulate.protocol import check, shipped

_PREFIX = "libero_"
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def suites_of(text: str) -> list[str]:
    """Suites that are named with commas between them; `libero_` may be left out."""
    named = [part.strip() for part in text.split(",") if part.strip()]
    return [name if name.startswith(_PREFIX) else f"{_PREFIX}{name}" for name in named]


def tasks_of(text: str | None, suites: Sequence[str]) -> dict[str, list[int]] | None:
    """Tasks by suite: numbers and ranges with commas between them, of every suite, or of one: goal/3.

    Raises: HarnessError "tasks-unreadable".
    """
    if text is None:
        return None
    found: dict[str, list[int]] = {}
    for part in (each.strip() for each in text.split(",")):
        suite, slash, numbers = part.rpartition("/")
        match = _RANGE.fullmatch(numbers)
        if match is None:
            raise HarnessError(
                "tasks-unreadable",
                "--tasks holds what is no number of a task",
                got=part or text,
                need="numbers and ranges with commas between them",
                fix="--tasks 0,3-5 for each suite, or --tasks goal/3,10/0-2 for some",
            )
        first, last = int(match[1]), int(match[2] or match[1])
        for each in suites_of(suite) if slash else suites:
            found.setdefault(each, []).extend(range(first, last + 1))
    return found


def rules_of(name: str, departures: Sequence[str]) -> tuple[Rules, list[str]]:
    """(the protocol with its departures, a sentence for each of them).

    Raises: HarnessError "protocol-unknown", "protocol-invalid", "departure-unreadable".
    """
    protocol = shipped(name)
    values, said = dict(protocol.values), []
    for departure in departures:
        key, equals, text = departure.partition("=")
        if not equals:
            raise HarnessError(
                "departure-unreadable",
                "--depart names a value of the protocol, and what it is instead",
                got=departure,
                need="KEY=VALUE",
                fix="--depart max_steps.libero_10=100",
            )
        value: Value = int(text) if re.fullmatch(r"-?\d{1,9}", text) else text
        check({**values, key: value})
        if values[key] != value:
            said.append(f"{key} is {value} instead of the protocol's {protocol.values[key]}")
        values[key] = value
    return Rules(name=protocol.name, version=protocol.version, values=values), said


def asked_of(
    policy: Policy,
    suites: str,
    tasks: str | None,
    episodes: int | None,
    rules: Rules,
    *,
    repeats: int = 1,
    seed: int = 0,
    mixed: bool = False,
) -> Asked:
    """The asked episodes. Of the control `replay` only those that a recording exists of.

    Raises: HarnessError of `asked` and of `tasks_of`; "recording-missing".
    """
    named = suites_of(suites)
    default = rules.values.get("episodes")
    count = episodes if episodes is not None else default if isinstance(default, int) else 1
    only = None
    if policy == "replay":
        only = [each[:3] for each in controls.recordings()]
        if episodes is None:
            count = 1 + max(episode for _, _, episode in only)
    some = tasks_of(tasks, named)
    found = asked(
        # Of suites without a named task nothing is meant.
        [suite for suite in named if some is None or suite in some] or named,
        tasks=some,
        episodes=count,
        repeats=repeats,
        seed=seed,
        mixed=mixed,
        only=only,
    )
    if only is not None:
        return _recorded(found, only)
    return found


def _recorded(found: Asked, only: Sequence[tuple[str, int, int]]) -> Asked:
    """The asked episodes that are recorded, without suites and tasks that have none."""
    kept = [each for each in only if each[1] in found.tasks.get(each[0], []) and each[2] < found.episodes]
    if not kept:
        raise HarnessError(
            "recording-missing",
            "no recording exists of any asked episode",
            got=", ".join(f"{suite} tasks {tasks}" for suite, tasks in found.tasks.items()),
            need=", ".join("/".join(map(str, each)) for each in only),
            fix="leave --tasks and --episodes out, or ask for these",
        )
    tasks: dict[str, list[int]] = {}
    for suite, task, _ in sorted(kept):
        if task not in tasks.setdefault(suite, []):
            tasks[suite].append(task)
    return found.model_copy(update={"tasks": tasks, "only": kept})


def kept_of(text: str) -> Kept:
    """Which videos are kept.

    Raises: HarnessError "videos-unknown".
    """
    for kept in KEPT:
        if text == kept:
            return kept
    raise HarnessError(
        "videos-unknown",
        f"videos are not kept by {text!r}",
        got=text,
        need=" or ".join(KEPT),
        fix="--videos failures",
    )


def policy_of(path: str | None, server: str | None, control: str | None) -> Policy:
    """Whose episodes are asked: of a checkpoint, a server, or a control.

    Raises: HarnessError "policy-unclear", "control-unknown".
    """
    given = {"PATH": path, "--server": server, "--policy": control}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise HarnessError(
            "policy-unclear",
            "one policy is evaluated: a checkpoint, a server, or a control",
            got=" and ".join(named) or "none",
            need="a run or step, or --server, or --policy",
            fix="harness evaluate runs/NAME, or harness evaluate --policy zero",
        )
    if control is None:
        return "server" if server is not None else "checkpoint"
    for kind in get_args(Policy):
        if control == kind and kind in CONTROLS:
            return kind  # type: ignore[no-any-return]
    raise HarnessError(
        "control-unknown",
        f"there is no control {control!r}",
        got=control,
        need=" or ".join(CONTROLS),
        fix="--policy zero",
    )


def against_of(compare: str | None) -> RunDir | str | None:
    """What --compare names: a published claim, an evaluation, or the newest evaluation of a run.

    Raises: HarnessError "claim-unknown", "evaluation-missing".
    """
    if compare is None:
        return None
    path = Path(compare)
    if compare in CLAIMS or not path.is_dir():
        return claim_of(compare).name
    if is_evaluation(path):
        return RunDir(path)
    found = evaluations_of(path)
    if not found:
        raise HarnessError(
            "evaluation-missing",
            f"{compare} holds no evaluation",
            got=f"no {EVALUATIONS}/ with a verdict in it",
            need="an evaluation's directory, or a run with one",
            fix=f"harness evaluate {word(path)}",
        )
    return found[-1]


def directory_of(
    run: Path | None, policy: Policy, tag: str, rules: Rules, asked: Asked, departures: Mapping[str, Value]
) -> Path:
    """Where an evaluation is written if no --out says it: in its run, under a name that says what it is.

    One without a run, such as that of a control, lies in `evaluations` beside the runs.
    """
    whole = asked.tasks.keys() == CLAIMS[OPENPI].suites.keys()
    names = "4suites" if whole else "+".join(suite.removeprefix(_PREFIX) for suite in sorted(asked.tasks))
    few = {tuple(tasks) for tasks in asked.tasks.values()}
    every = all(len(tasks) >= 10 for tasks in asked.tasks.values())
    parts = [
        tag if policy in ("checkpoint", "server") else policy,
        rules.name,
        names,
        *([] if every or asked.only else ["tasks" + ".".join(map(str, sorted(set().union(*few))))[:40]]),
        f"{asked.episodes}x{asked.repeats}" if asked.repeats > 1 else f"{asked.episodes}",
        *([f"seed{asked.seed}"] if asked.seed else []),
        *(f"{key.replace('_', '').replace('.', '')}{value}" for key, value in sorted(departures.items())),
    ]
    name = re.sub(r"[^A-Za-z0-9_.+-]+", "-", "-".join(parts))[:150]
    return (runs_root() if run is None else run) / EVALUATIONS / name
