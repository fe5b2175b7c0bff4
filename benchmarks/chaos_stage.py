"""The stage of `benchmarks.chaos`: containers on one directory, the undisturbed run, the verdicts.

A verdict compares a disturbed run with the undisturbed one.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.containers import (
    SAVE_EVERY,
    SMALL,
    STEPS,
    Box,
    Ended,
    Image,
    digests,
    metrics,
    steps,
    unsound,
)


class Verdict(NamedTuple):
    """`ended` is the disturbed container's; `problems` what is not as it should be."""

    ended: str
    words: str
    problems: list[str]


class Stage:
    """Where runs are made: `runs` and `cache` on the host's disk, and the run that nothing disturbed."""

    def __init__(self, image: Image, root: Path) -> None:
        self.image, self.runs, self.cache, self.root = image, root / "runs", root / "cache", root
        self.whole = self.runs / "whole"
        for path in (self.runs, self.cache):
            path.mkdir()

    def run(
        self,
        name: str,
        *arguments: str,
        options: Sequence[str] = (),
        runs: str | None = None,
        mode: str = "rw",
        tini: bool = True,
    ) -> Box:
        """A container that trains `name`."""
        given = [
            *self.image.options(runs=runs or str(self.runs), cache=self.cache, mode=mode, tini=tini),
            *options,
        ]
        return Box(self.image, given, ["train", f"--run=/runs/{name}", *arguments])

    def start(self, name: str, **how: object) -> Box:
        return self.run(name, *SMALL, **how)  # type: ignore[arg-type]

    def resume(self, name: str, *arguments: str, **how: object) -> Box:
        return self.run(name, "--resume", *arguments, **how)  # type: ignore[arg-type]

    def reference(self) -> None:
        with self.start("whole") as box:
            ended = box.ended()
        if ended.code or steps(self.whole) != list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)):
            raise SystemExit(f"the undisturbed run failed: {ended.code}, {ended.said[-3000:]}")

    def verdict(
        self, name: str, ended: Ended, *, code: int, words: Sequence[str], kept: int, resumes: bool = True
    ) -> Verdict:
        """The verdict on a disturbed run that must have kept the checkpoint of step `kept`; resumes it and
        compares.
        """
        run, problems = self.runs / name, []
        if ended.code != code:
            problems.append(f"exit code {ended.code}, not {code}: {ended.said.strip()[-300:]}")
        problems += [
            f"does not say {word!r}: {ended.said.strip()[-600:]}" for word in words if word not in ended.said
        ]
        there = steps(run)
        if kept and kept not in there:
            problems.append(f"checkpoints {there}, without {kept}")
        if there:
            problems += [
                f"step {there[-1]}: {text}" for text in unsound(self.image, run, self.cache, there[-1])
            ]
        if resumes:
            with self.resume(name) as box:
                again = box.ended()
            problems += (
                [f"the resume ended with {again.code}: {again.said.strip()[-600:]}"]
                if again.code
                else self.differs(run)
            )
        said = [line for line in ended.said.splitlines() if line.startswith("error")]
        shutil.rmtree(run, ignore_errors=True)
        return Verdict(
            f"{ended.code}{', OOMKilled' if ended.oom else ''}",
            (said or [words[0] if words else "-"])[-1],
            problems,
        )

    def differs(self, run: Path) -> list[str]:
        """What is not as in the run that nothing disturbed."""
        found = [] if metrics(run) == metrics(self.whole) else ["the lines of metrics differ"]
        # A stop saves where it stands, beside the steps of the recipe.
        missing = {*steps(self.whole)} - {*steps(run)}
        found += [f"checkpoints {sorted(missing)} are missing"] if missing else []
        return found + [
            f"arrays of step {step} differ"
            for step in sorted({*steps(self.whole)} - missing)
            if digests(run, step) != digests(self.whole, step)
        ]

    def past(self, box: Box, name: str, step: int) -> None:
        """Waits until the checkpoint of `step` is whole and a line after it is written."""
        box.until(
            lambda: step in steps(self.runs / name) and len(metrics(self.runs / name)) > step, f"step {step}"
        )
