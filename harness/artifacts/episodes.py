"""The lines of episodes.jsonl, one an episode that was driven in the simulator.

A line has no time and no process in it, so the same episodes give the same lines in any order, with any
number of workers, and after a resume.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from harness.received.files import METRICS_BYTES, open_received
from harness.strict import Strict
from harness.units import KIB

EPISODES = "episodes.jsonl"
# A line of 520 steps with a query at each of them has some 36 KiB.
LINE_BYTES = 256 * KIB
MOST_LINES = 200_000

Count = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_.:-]+$")]
Outcome = Literal["success", "failure", "error"]


class Key(NamedTuple):
    """Which episode. `repeat` counts further tries of the same scene with another noise."""

    suite: str
    task: int
    episode: int
    repeat: int = 0

    def __str__(self) -> str:
        again = f" repeat {self.repeat}" if self.repeat else ""
        return f"{self.suite} task {self.task} episode {self.episode}{again}"


class EpisodeError(Strict):
    """What kept the harness from measuring an episode: the server, the simulator, the disk."""

    code: Annotated[str, Field(max_length=100)]
    what: Annotated[str, Field(max_length=2000)]


class Episode(Strict):
    """One line.

    `setting` is the hash of what every episode of an evaluation has in common (`Setting.sha256`).
    `scene_sha256` is that of the simulator's whole state before the first action. `observations` has a hash
    for each query of the policy. `steps` counts the policy's steps, without those of waiting. `reached`: the
    step at which each part of the goal first held; null for one that never did.

    `outcome` "error" is no outcome of the policy: the episode was not measured, and is no failure anywhere.
    """

    suite: Name
    task: Count
    episode: Count
    repeat: Count = 0
    setting: Digest
    initial_state: Count | None
    scene_sha256: Digest | None
    observations: list[Digest]
    actions_sha256: Digest | None
    outcome: Outcome
    steps: Count
    reached: dict[Annotated[str, Field(max_length=200)], Count | None] = Field({}, max_length=50)
    error: EpisodeError | None = None

    @property
    def key(self) -> Key:
        return Key(self.suite, self.task, self.episode, self.repeat)

    @property
    def measured(self) -> bool:
        """True for an episode whose outcome is the policy's."""
        return self.outcome != "error"

    @model_validator(mode="after")
    def _says_what_it_measured(self) -> Episode:
        if (self.outcome == "error") != (self.error is not None):
            raise ValueError("an error is given if and only if the outcome is one")
        lacks = None in (self.scene_sha256, self.actions_sha256, self.initial_state) or not self.observations
        if self.measured and lacks:
            raise ValueError("a measured episode has a scene, an initial state, observations and actions")
        return self

    def line(self) -> bytes:
        """The line of the file with its end."""
        return self.model_dump_json().encode() + b"\n"


class Episodes(NamedTuple):
    """The episodes of a file by key, in the order of the keys.

    Of several lines of one key the first measured one counts, so that nobody can repeat an episode until it
    succeeds; an error counts only without any measured one. `settings` has the number of episodes of each
    setting; with more than one, `found` is of no use. `repeated` are keys with more lines that say the same,
    `conflicts` those whose measured lines differ. `unreadable` are the numbers of lines of another form.
    `torn` is true if the last line has no end, as after a kill. `cut` is true if the file has more lines than
    are read.
    """

    found: dict[Key, Episode]
    settings: dict[str, int] = {}
    repeated: tuple[Key, ...] = ()
    conflicts: tuple[Key, ...] = ()
    unreadable: tuple[int, ...] = ()
    torn: bool = False
    cut: bool = False

    @property
    def measured(self) -> list[Episode]:
        return [episode for episode in self.found.values() if episode.measured]

    @property
    def errors(self) -> list[Episode]:
        return [episode for episode in self.found.values() if not episode.measured]

    def sha256(self) -> str:
        """The hash of the measured episodes in the order of their keys: equal for equal evaluations."""
        total = hashlib.sha256()
        for episode in self.measured:
            total.update(episode.line())
        return total.hexdigest()


def read_episodes(path: Path, root: Path) -> Episodes | None:
    """The episodes of the file; None if there is none. No content brings it down.

    Raises: UnsafeFile; OSError as `open` does.
    """
    found: dict[tuple[Key, str], Episode] = {}
    repeated: set[Key] = set()
    conflicts: set[Key] = set()
    unreadable: list[int] = []
    number, text = 0, b"\n"
    try:
        for number, text in enumerate(_lines(path, root), 1):
            if number > MOST_LINES:
                break
            episode = episode_of(text)
            if episode is None:
                # A torn end is what a kill leaves; it is told apart below.
                unreadable += [number] if text.strip() and text.endswith(b"\n") else []
                continue
            before = found.setdefault((episode.key, episode.setting), episode)
            if before is episode:
                continue
            if not before.measured:
                found[episode.key, episode.setting] = episode
            elif episode.measured:
                (repeated if before == episode else conflicts).add(episode.key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    cut = number > MOST_LINES
    return Episodes(
        {key: episode for (key, _), episode in sorted(found.items(), key=lambda item: item[0])},
        dict(Counter(setting for _, setting in found)),
        tuple(sorted(repeated - conflicts)),
        tuple(sorted(conflicts)),
        tuple(unreadable),
        not cut and not text.endswith(b"\n"),
        cut,
    )


def episode_of(text: bytes) -> Episode | None:
    """The episode of a line, or None if it is torn, too long or of another form."""
    if len(text) > LINE_BYTES:
        return None
    try:
        return Episode.model_validate_json(text)
    except ValueError:
        return None


def _lines(path: Path, root: Path) -> Iterator[bytes]:
    """Lines. Of one that is too long: its first LINE_BYTES + 1 bytes; the rest is skipped."""
    with open_received(path, root) as file:
        read, rest = 0, False
        while read < METRICS_BYTES and (part := file.readline(LINE_BYTES + 1)):
            read += len(part)
            if not rest:
                yield part if len(part) <= LINE_BYTES else part[:LINE_BYTES] + b"\n"
            rest = not part.endswith(b"\n")
