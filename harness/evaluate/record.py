"""Writes setting.json and episodes.jsonl, one evaluation in a directory, and reads them back.

A line is written whole and reaches the disk before the next episode. A kill leaves half a line at the most,
which the next start takes away: its episode is asked again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from harness.artifacts.episodes import (
    EPISODES,
    LINE_BYTES,
    Episode,
    Episodes,
    Key,
    episode_of,
    read_episodes,
)
from harness.artifacts.setting import APART, Setting
from harness.errors import HarnessError
from harness.evaluate.schedule import keys
from harness.received.denied import may_be_opened
from harness.received.files import open_received, there
from harness.received.text import word
from harness.received.unwritable import cannot_write
from harness.received.writing import open_to_write
from harness.recipe.meaning import changed_keys, flat
from harness.run.directory import RunDir, write_atomic
from harness.run.evaluations import name_of
from harness.run.lock import locked


class Recorded(NamedTuple):
    """An evaluation's directory as it is read."""

    directory: RunDir
    setting: Setting
    episodes: Episodes

    @property
    def name(self) -> str:
        return name_of(self.directory.path)

    @property
    def asked(self) -> list[Key]:
        return keys(self.setting.asked)


class Recorder:
    """Appends episodes to a directory's file. Made by `recording`."""

    def __init__(self, directory: RunDir, setting: Setting, episodes: Episodes, descriptor: int) -> None:
        self.directory = directory
        self.setting = setting
        self.episodes = episodes
        self.sha256 = setting.sha256()
        self._asked = set(keys(setting.asked))
        self._descriptor = descriptor

    def add(self, episode: Episode) -> None:
        """Appends a line and waits until it is on the disk.

        Raises: HarnessError "episode-stray" for an episode of another setting, or one that was not asked;
        "disk-full", "not-writable".
        """
        if episode.setting != self.sha256 or episode.key not in self._asked:
            raise HarnessError(
                "episode-stray",
                f"{episode.key} does not belong to the evaluation in {self.directory.path}",
                got=f"setting {episode.setting[:16]}",
                need=f"an asked episode of setting {self.sha256[:16]}",
                fix="this is a fault of the harness: report it with setting.json",
            )
        path, size = self.directory.path / EPISODES, os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, episode.line())
            os.fsync(self._descriptor)
        except OSError as error:
            # Half a line of a full disk would take the next line with it.
            # If that fails too, the next start takes it away.
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise cannot_write(path, error) from error


@contextmanager
def recording(directory: RunDir, setting: Setting, *, resume: bool = False) -> Iterator[Recorder]:
    """The recorder of an evaluation, alone in its directory as long as it is open.

    With `resume` it goes on with the episodes of the same setting; it may ask more of them than before.

    Raises: as `reserved` and `recording_in`.
    """
    with reserved(directory, resume=resume) as before, recording_in(directory, setting, before) as recorder:
        yield recorder


@contextmanager
def reserved(directory: RunDir, *, resume: bool = False) -> Iterator[Recorded | None]:
    """What the directory holds of an evaluation. Inside the block nobody else records there.

    Raises: HarnessError "evaluation-there" for a directory that has episodes, without `resume`;
    "evaluation-mixed"; "evaluation-busy" if another process records there; "not-writable"; UnsafeFile.
    """
    path = directory.path / EPISODES
    with _alone(directory.path):
        before = read_recorded(directory) if there(path) or there(directory.path / Setting.FILE) else None
        if before and before.episodes.found and not resume:
            raise HarnessError(
                "evaluation-there",
                f"{directory.path} holds an evaluation already",
                got=f"{len(before.episodes.found):,} episodes",
                need="an empty directory, or to go on with that one",
                fix="--resume goes on with it; a new one: --out with another directory",
            )
        yield before


@contextmanager
def recording_in(directory: RunDir, setting: Setting, before: Recorded | None) -> Iterator[Recorder]:
    """The recorder in a reserved directory that holds `before`.

    Raises: HarnessError "evaluation-other" for one of another setting; "not-writable"; UnsafeFile.
    """
    path = directory.path / EPISODES
    if before:
        _check_same(before, setting)
    directory.write(setting)
    try:
        descriptor = open_to_write(path, append=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        episodes = before.episodes if before else _NONE
        if episodes.torn:
            _end_last_line(descriptor, directory)
        yield Recorder(directory, setting, episodes, descriptor)
    finally:
        os.close(descriptor)


def _end_last_line(descriptor: int, directory: RunDir) -> None:
    """Ends a last line that is whole, or takes away what a kill left of one. Other text stays."""
    with open_received(directory.path / EPISODES, directory.path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LINE_BYTES))
        last = file.read().rpartition(b"\n")[2]
    if last.startswith(_BEGIN) and episode_of(last) is None:
        os.ftruncate(descriptor, size - len(last))
    else:
        _write(descriptor, b"\n")


def put_in_order(directory: RunDir) -> None:
    """Puts the lines of a whole evaluation in the order of their keys, in one atomic replacement.

    The same episodes then make the same bytes, in whichever order they were driven. A line of an error is
    left out once the episode was measured. A file that has what nobody can read, or lines that contradict
    each other, is left as it is.

    Raises: as `read_recorded`; HarnessError "disk-full", "not-writable".
    """
    recorded = read_recorded(directory)
    episodes = recorded.episodes
    if episodes.conflicts or episodes.unreadable or episodes.cut:
        return
    lines = b"".join(episode.line() for episode in episodes.found.values())
    write_atomic(directory.path / EPISODES, lines, root=directory.path)


_NONE = Episodes({})
# How each line of ours begins.
_BEGIN = b'{"'


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """The directory's lock."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except HarnessError as error:
            if error.code != "run-busy":
                raise
            raise HarnessError(
                "evaluation-busy",
                f"another process records episodes in {path}",
                got=error.got,
                need="one evaluation in a directory",
                fix="wait for it, or evaluate into another directory",
            ) from error
        yield


def read_recorded(directory: RunDir) -> Recorded:
    """The setting and the episodes of a directory, which belong together.

    Raises: HarnessError "evaluation-missing" without a setting; "evaluation-mixed" if lines are of another
    setting; as `RunDir.read`; UnsafeFile.
    """
    setting = directory.read(Setting)
    if setting is None:
        raise HarnessError(
            "evaluation-missing",
            f"{directory.path} holds no evaluation",
            got=f"no {Setting.FILE}",
            need="a directory that an evaluation has begun in",
            fix=f"look what is there: ls {word(directory.path)}",
        )
    path = directory.path / EPISODES
    try:
        episodes = read_episodes(path, directory.path) or _NONE
    except OSError as error:
        raise HarnessError(
            "artifact-unreadable",
            f"{path} cannot be read: {error.strerror}",
            need="a file that this user may read",
            fix=may_be_opened(path),
        ) from error
    others = {sha256: count for sha256, count in episodes.settings.items() if sha256 != setting.sha256()}
    if others:
        own = setting.sha256()
        raise HarnessError(
            "evaluation-mixed",
            f"{path} has episodes of more than one setting: another policy, protocol or simulator",
            got=", ".join(f"{count:,} of {sha256[:16]}" for sha256, count in others.items()),
            need=f"episodes of {own[:16]} alone, which {Setting.FILE} describes",
            fix=(
                "one directory for each evaluation; to keep the episodes of this one: mkdir NEW && cp"
                f" {word(directory.path / Setting.FILE)} NEW && grep {word(own)} {word(path)} >"
                f" NEW/{EPISODES}"
            ),
        )
    return Recorded(directory, setting, episodes)


def _check_same(before: Recorded, setting: Setting) -> None:
    if before.setting.sha256() == setting.sha256():
        return
    one, two = (flat(each.model_dump(mode="json", exclude=APART)) for each in (before.setting, setting))
    changed = changed_keys(one, two)
    raise HarnessError(
        "evaluation-other",
        f"{before.directory.path} holds the evaluation of another setting: its episodes cannot be added to",
        got=f"{changed[0]} {two.get(changed[0])}" + (f" and {len(changed) - 1} more" if changed[1:] else ""),
        need=f"{changed[0]} {one.get(changed[0])}",
        fix="evaluate into another directory",
    )


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
