"""The part of a trainer that its supervisor needs; flow/trainer.py has the whole interface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from harness.errors import HarnessError
    from harness.run.directory import RunDir


class Supervised(Protocol):
    def command(self, run: RunDir) -> list[str]:
        """The command that trains what the files of `run` say."""

    def crashed(self, phase: str, name: str, got: str) -> HarnessError | None:
        """The cause of a crash by the signal `name` in that phase. None if this trainer cannot explain it."""
