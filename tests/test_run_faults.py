"""Tests every writer at every point at which a disk can fail or a process can be killed.

After a failure the person has a refusal with a fix. What was whole before is there still. No temporary file
stays. The same work, done again, ends as if nothing had been. A writer that is new belongs into WRITERS.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from harness.artifacts.episodes import EPISODES
from harness.checkpoint.prune import prune
from harness.checkpoint.whole import whole_or_nothing
from harness.download import cache
from harness.download.cache import fetch_tree
from harness.errors import HarnessError
from harness.evaluate.record import put_in_order, read_recorded, recording
from harness.received.denied import denied
from harness.run.directory import RunDir, write_atomic
from harness.run.lock import holder, locked
from harness.train.held_out_file import HeldOutFile
from harness.train.kernels import compile_pinned
from harness.train.metrics import UNREAD, MetricsFile
from tests.support import held_out
from tests.support.faults import Disk, on
from tests.support.file_server import Server, server
from tests.test_evaluate_episodes import LINES, OF, directory
from tests.test_train_metrics import line

__all__ = ["server"]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")
Faults = dict[str, dict[str, Any]]
FAULTS: Faults = {
    "a disk that is full from then on": {"number": errno.ENOSPC, "short": True},
    "a disk that fails once": {"number": errno.EIO, "once": True},
    "a disk that reads alone from then on": {"number": errno.EROFS},
    "too many open files, once": {"number": errno.EMFILE, "once": True},
}


class Writer(NamedTuple):
    """`before` makes what lies there, `act` writes, `read` gives what a reader finds.

    `act` returns what it warns of. `keeps` says whether everything is there that was whole before `act`.
    """

    before: Callable[[Path], object]
    act: Callable[[Path], str | None]
    read: Callable[[Path], Any]
    keeps: Callable[[Path], bool]


def nothing(at: Path) -> None:
    """What lies there before a writer that begins anew."""


def page(path: Path) -> Writer:
    """A file that is replaced as a whole."""
    old, new = "old" * 9000, "new" * 9999

    def read(at: Path) -> str:
        return (at / path).read_text()

    return Writer(
        lambda at: write_atomic(at / path, old),
        lambda at: write_atomic(at / path, new),
        read,
        lambda at: read(at) in (old, new),
    )


def lock() -> Writer:
    def act(at: Path) -> None:
        with locked(at):
            pass

    return Writer(nothing, act, holder, lambda at: holder(at) is None)


def log() -> Writer:
    """metrics.jsonl, with lines of another form and half a line, that a resume from step 2 goes on with."""
    strange = [b'{"schema": 9, "step": 1}', b'{"schema": 9, "step": 2}']

    def before(at: Path) -> None:
        lines = [line(step).model_dump_json(exclude_none=True).encode() for step in range(4)]
        (at / "metrics.jsonl").write_bytes(b"\n".join([*lines[:2], *strange, *lines[2:], lines[0][:30]]))

    def act(at: Path) -> None:
        file = MetricsFile(at / "metrics.jsonl", start_step=2)
        try:
            for step in (2, 3):
                file.write([line(step)])
            file.to_disk()
        finally:
            file.close()

    def read(at: Path) -> list[list[bytes]]:
        names = (at / "metrics.jsonl", at / f"metrics.jsonl{UNREAD}")
        return [path.read_bytes().splitlines() if path.exists() else [] for path in names]

    def keeps(at: Path) -> bool:
        own, aside = read(at)
        steps = [each for each in own if b"loss" in each]
        return len(steps) >= 2 and all(each in own or each in aside for each in strange)

    return Writer(before, act, read, keeps)


def held_out_log() -> Writer:
    lines = [held_out.line(step, [0.5, 0.25]) for step in (1, 2, 3)]

    def before(at: Path) -> None:
        whole = "".join(each.model_dump_json() + "\n" for each in lines[:2])
        (at / "held_out.jsonl").write_text(f"{whole}{lines[2].model_dump_json()[:40]}")

    def act(at: Path) -> None:
        file = HeldOutFile(at / "held_out.jsonl", start_step=1)
        for each in lines[1:]:
            file.write(each)

    def read(at: Path) -> list[str]:
        return (at / "held_out.jsonl").read_text().splitlines()

    return Writer(before, act, read, lambda at: read(at)[0] == lines[0].model_dump_json())


def episodes() -> Writer:
    def act(at: Path) -> None:
        with recording(RunDir(at / "e"), OF, resume=True) as recorder:
            done = recorder.episodes.found
            for each in LINES[5:2:-1]:
                if each.key not in done:
                    recorder.add(each)
        put_in_order(RunDir(at / "e"))

    def read(at: Path) -> bytes:
        return (at / "e" / EPISODES).read_bytes()

    def keeps(at: Path) -> bool:
        found = read_recorded(RunDir(at / "e")).episodes
        return not found.unreadable and {each.key for each in LINES[:3]} <= found.found.keys()

    half = LINES[3].line()[:70]
    return Writer(lambda at: directory(at / "e", OF, LINES[:3], half), act, read, keeps)


def kernels() -> Writer:
    def compiled(options: dict[str, str]) -> None:
        for name, path in options.items():
            if name == "xla_gpu_dump_autotune_results_to":
                Path(path).write_text("chosen " * 500)

    def act(at: Path) -> None:
        compile_pinned(RunDir(at), "cuda", compiled, lambda _: None)

    def read(at: Path) -> str | None:
        path = at / "kernels.pbtxt"
        return path.read_text() if path.exists() else None

    return Writer(nothing, act, read, lambda at: read(at) in (None, "chosen " * 500))


def export() -> Writer:
    def act(at: Path) -> None:
        if (at / "out").exists():
            return
        with whole_or_nothing(at / "out", 1) as made:
            (made / "assets").mkdir()
            with (made / "assets" / "norm_stats.json").open("xb") as file:
                file.write(b"{}" * 9000)
            write_atomic(made / "record.json", "{}")

    def read(at: Path) -> list[tuple[str, int]]:
        out = at / "out"
        return sorted((str(path.relative_to(out)), path.stat().st_size) for path in out.rglob("*.json"))

    return Writer(nothing, act, read, lambda at: len(read(at)) in (0, 2))


def older_steps() -> Writer:
    names = [f"{step}/{name}" for step in (1, 2, 3) for name in ("params/a", "record.json")]

    def before(at: Path) -> None:
        for name in names:
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_text(name)

    def read(at: Path) -> list[str]:
        return sorted(str(path.relative_to(at)) for path in at.rglob("*") if path.is_file())

    def keeps(at: Path) -> bool:
        """A step is whole, or has another name."""
        found = set(read(at))
        return {names[-1], names[-2]} <= found and all(
            sum(name.startswith(f"{step}/") for name in found) in (0, 2) for step in (1, 2, 3)
        )

    def act(at: Path) -> str | None:
        return prune(at, [step for step in (1, 2) if (at / str(step)).exists()])

    return Writer(before, act, read, keeps)


def download(found: Server) -> Writer:
    bodies = {"_METADATA": b"{}", "d/abc": b"array" * 2000}
    found.files |= {f"ck/params/{name}": body for name, body in bodies.items()}

    def act(at: Path) -> None:
        fetch_tree("gs://bucket/ck/params", cache=at / "cache")

    def read(at: Path) -> list[tuple[str, bytes]]:
        return sorted((path.name, path.read_bytes()) for path in at.rglob("params/**/*") if path.is_file())

    def keeps(at: Path) -> bool:
        sizes = {Path(name).name: len(body) for name, body in bodies.items()}
        return all(len(body) == sizes[name] for name, body in read(at))

    return Writer(nothing, act, read, keeps)


WRITERS: dict[str, Callable[[], Writer]] = {
    "a page": lambda: page(Path("report.html")),
    "a page with a long name": lambda: page(Path("ü" * 120 + ".html")),
    "the lock": lock,
    "metrics": log,
    "held-out lines": held_out_log,
    "episodes": episodes,
    "kernels": kernels,
    "an export": export,
    "older steps": older_steps,
}


def law(writer: Writer, base: Path, new: Any, at: Path, said: str) -> None:
    """What holds in a directory in which `act` was ended in the middle."""
    assert writer.keeps(at), f"{said}: lost"
    writer.act(at)
    assert writer.read(at) == new, f"{said}: done again"
    shutil.rmtree(at)
    shutil.copytree(base, at, symlinks=True)


def laws(writer: Writer, tmp_path: Path) -> int:
    """The number of points of the writer, after the law was held at each."""
    base, at, images = tmp_path / "base", tmp_path / "at", tmp_path / "images"
    base.mkdir()
    writer.before(base)
    shutil.copytree(base, at, symlinks=True)
    with on(Disk(at, look=lambda number: shutil.copytree(at, images / str(number), symlinks=True))) as disk:
        writer.act(at)
    new, count = writer.read(at), len(disk.points)
    for number, point in enumerate(disk.points, 1):
        shutil.rmtree(at)
        shutil.copytree(images / str(number), at, symlinks=True)
        law(writer, base, new, at, f"killed before {number} {point}")
    for name, fault in FAULTS.items():
        for number in range(1, count + 1):
            with on(Disk(at, at=number, **fault)) as disk:
                try:
                    refused = writer.act(at) is not None
                except (HarnessError, OSError) as error:
                    # A verb shows it so.
                    told = error if isinstance(error, HarnessError) else denied(error)
                    refused = told is not None and bool(told.code and told.fix)
            said = f"{name}, {number} {disk.points[number - 1 : number]}"
            assert refused or writer.read(at) == new, f"{said}: not told"
            if fault["number"] != errno.EROFS:
                left = [path for path in at.rglob(".*") if TEMPORARY.fullmatch(path.name)]
                assert not left, f"{said}: left {left}"
            law(writer, base, new, at, said)
    return count


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_loses_nothing_wherever_it_is_ended(name: str, tmp_path: Path) -> None:
    assert laws(WRITERS[name](), tmp_path) > 2


def test_a_download_loses_nothing_wherever_it_is_ended(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One file after the other, so that a point has one number.
    monkeypatch.setattr(cache, "_THREADS", 1)
    assert laws(download(server), tmp_path) > 2
