"""The results of gpu_laws.py as they come, and the rules that judge them. Nothing is started here."""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FORM = 1
KILLS = 5


class State(enum.StrEnum):
    """How a stage ended. UNFINISHED: its time was over; the next call goes on with it."""

    HOLDS = "holds"
    BROKEN = "broken"
    SKIPPED = "skipped"
    UNFINISHED = "unfinished"


class Mixed(Exception):
    """Results of another machine or of other code stand in the file already."""


class Book:
    """gpu_laws.json: a header, an entry for each stage, and what unfinished stages have found so far.

    Written anew after each finding, so that a kill loses none. Raises: Mixed.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path, self._header = path, dict(header)
        self.stages: dict[str, dict[str, Any]] = {}
        self.notes: dict[str, list[Any]] = {}
        try:
            kept = json.loads(path.read_text())
        except FileNotFoundError:
            return
        except ValueError as error:
            raise Mixed(f"{path} cannot be read ({error}): name another directory") from error
        theirs = kept.get("of") if isinstance(kept, dict) else None
        if theirs != self._header or kept.get("form") != FORM:
            known = theirs if isinstance(theirs, dict) else {}
            keys = sorted(key for key in {*known, *header} if known.get(key) != header.get(key))
            raise Mixed(
                f"{path} is of another machine or other code ({', '.join(keys)}): name another directory"
            )
        self.stages, self.notes = kept["stages"], kept["notes"]

    def state(self, name: str) -> str | None:
        return self.stages.get(name, {}).get("state")

    def is_done(self, name: str, with_openpi: bool) -> bool:
        """Whether a stage is not to be done again. One skipped for want of openpi is, once that is given."""
        state = self.state(name)
        if state == State.SKIPPED:
            return not (name == "openpi" and with_openpi)
        return state in (State.HOLDS, State.BROKEN)

    def put(self, name: str, state: State, **found: Any) -> None:
        self.stages[name] = {"state": str(state), **found}
        self._write()

    def note(self, name: str, finding: Any) -> None:
        """Adds what an unfinished stage has found; it is there when the stage goes on."""
        self.notes.setdefault(name, []).append(finding)
        self._write()

    def _write(self) -> None:
        body = {"form": FORM, "of": self._header, "stages": self.stages, "notes": self.notes}
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(body, indent=1) + "\n")
        os.replace(new, self._path)


def exit_code(stages: Mapping[str, Mapping[str, Any]]) -> int:
    """1 if something does not hold, else 3 if something was cut off, else 0."""
    states = {entry["state"] for entry in stages.values()}
    return 1 if State.BROKEN in states else 3 if State.UNFINISHED in states else 0


def victim_of(number: int) -> str:
    """Who is killed: the supervisor, with which the trainer dies; each third time the trainer alone."""
    return "trainer" if number % 3 == 2 else "supervisor"


def moment_of(number: int) -> str:
    """When: in a save and in a step by turns."""
    return "save" if number % 2 == 0 else "step"


def judged_kills(
    kills: Sequence[Mapping[str, Any]], at_the_end: Sequence[str]
) -> tuple[bool, dict[str, Any]]:
    """Whether five kills changed nothing. Each has `phase`, `whole` (the newest checkpoint then) and
    `wrong`; `at_the_end` is wrong at last.

    A kill that was meant for a save may find it done. At least one must have fallen into a save, one into a
    step, and each resume must have had a checkpoint to go on from.
    """
    phases = [kill["phase"] for kill in kills]
    wrong = [text for kill in kills for text in kill["wrong"]] + list(at_the_end)
    exact = sum(not kill["wrong"] for kill in kills)
    counts = {phase: phases.count(phase) for phase in sorted({*phases})}
    resumed = [kill["whole"] for kill in kills]
    told = {"kills": len(kills), "exact": exact, "phases": counts, "resumed_from": resumed, "wrong": wrong}
    enough = len(kills) >= KILLS and {"save", "step"} <= {*phases} and min(resumed) > 0
    return enough and not wrong, told


def judged_verdict(verdict: Mapping[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a verdict says equal bit for bit: the steps computed again, and each field that matters.

    A field that cannot be told, such as an image outside of one, is named and does not break the law.
    """
    replay = verdict["replay"] or {}
    by_status: dict[str, list[str]] = {}
    for field in verdict["fields"]:
        if field["matters"] and field["status"] != "equal":
            by_status.setdefault(field["status"], []).append(field["field"])
    bits = (replay.get("status"), replay.get("tolerance"), replay.get("largest_difference")) == (
        "equal",
        0,
        0,
    )
    differs = by_status.get("differs", [])
    told = {
        "verdict": verdict["verdict"],
        "bit_for_bit": bits,
        "steps": replay.get("steps"),
        "largest_difference": replay.get("largest_difference"),
        "differs": differs,
        "cannot_tell": by_status.get("cannot tell", []),
        "note": replay.get("note") or replay.get("first"),
    }
    return bits and not differs, told


def median(numbers: Sequence[float]) -> float:
    """The middle one; of an even count the mean of the two in the middle."""
    ordered, middle = sorted(numbers), len(numbers) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Ours beside openpi's, from the lines of gpu_laws_step.py.

    `times_faster` is of seconds a sample, so that another batch of theirs is fair to them. A ratio whose
    parts are not known is null.
    """
    each = {side: median(one["step_s"]) / one["batch"] for side, one in (("ours", ours), ("openpi", theirs))}
    peaks = ours["peak_bytes"], theirs["peak_bytes"]
    return {
        "batches": {"ours": ours["batch"], "openpi": theirs["batch"]},
        "seconds_a_step": {"ours": median(ours["step_s"]), "openpi": median(theirs["step_s"])},
        "samples_a_second": {side: 1 / seconds for side, seconds in each.items()},
        "times_faster": each["openpi"] / each["ours"],
        "peak_bytes": {"ours": peaks[0], "openpi": peaks[1]},
        "peak_of_theirs": peaks[0] / peaks[1] if all(peaks) else None,
        "compiled_bytes": {"ours": ours["compiled_bytes"], "openpi": theirs["compiled_bytes"]},
    }


def batches_to_try(pool_bytes: int | None, need: Callable[[int], int]) -> list[int]:
    """openpi's batches, the largest first, without those that need more than the pool by `need`.

    The first that runs is taken: the compiler may ask for more than is known of another version.
    """
    every = (256, 192, 128, 96, 64, 32, 16, 8)
    return [batch for batch in every if pool_bytes is None or need(batch) <= pool_bytes]
