"""Tests that what the system refuses is said in words, and that a mistake of ours stays a traceback."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.received.denied import denied
from harness.received.unwritable import cannot_write
from harness.received.writing import open_beside, sweep_beside


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EACCES, "chmod u+rwX /shut, "),
        (errno.EIO, "df -h"),
        (errno.ENAMETOOLONG, "another directory"),
        (errno.ENOMEM, "ulimit -v"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOENT, None),
        (errno.EBADF, None),
    ],
)
def test_what_the_system_refuses_is_told_from_a_mistake(
    number: int, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path == Path("/"))
    refusal = denied(OSError(number, os.strerror(number), "/shut/run/manifest.json"))
    assert (None if refusal is None else says in refusal.fix) == (None if says is None else True)


@pytest.mark.parametrize(
    ("number", "refused"), [(errno.ENOSPC, True), (errno.EIO, True), (errno.EBADF, False)]
)
def test_a_disk_that_refuses_without_a_name_is_no_mistake(number: int, refused: bool) -> None:
    assert (denied(OSError(number, os.strerror(number))) is not None) == refused


@pytest.mark.parametrize(("number", "says"), [(errno.EACCES, "[path-refused]"), (errno.EBADF, "Traceback")])
def test_a_verb_ends_with_it(
    number: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError(number, os.strerror(number), "/shut/run")

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr(cli, "_open_streams", lambda: None)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOSPC, "disk-full", "free space in "),
        (errno.EACCES, "not-writable", "chmod u+rwX "),
        (errno.EROFS, "not-writable", "without :ro"),
        (errno.EMFILE, "too-many-files", "ulimit -n $(ulimit -Hn)"),
        (errno.EFBIG, "not-writable", "ulimit -f unlimited"),
        (errno.ENAMETOOLONG, "not-writable", "shorter name"),
        (errno.EIO, "not-writable", "look at the disk (df -h "),
    ],
)
def test_the_fix_of_what_cannot_be_written_is_that_of_its_reason(
    number: int, code: str, says: str, tmp_path: Path
) -> None:
    refusal = cannot_write(tmp_path / "file", OSError(number, os.strerror(number)))
    assert refusal.code == code
    assert says in str(refusal.fix)
    assert ("chown" in str(refusal.fix) or "chmod" in str(refusal.fix)) == (number == errno.EACCES)


def test_what_a_killed_writer_left_is_removed_a_day_later_and_nothing_else(tmp_path: Path) -> None:
    file, other = tmp_path / "report.html", tmp_path / ".report.html.backup"
    other.write_text("mine")
    made = []
    for path in (file, file, tmp_path / "report.htm"):
        descriptor, temporary = open_beside(path)
        os.close(descriptor)
        made.append(temporary)
    long_ago = os.stat(other).st_mtime - 2 * 86_400
    for path in (made[0], made[2], other):
        os.utime(path, (long_ago, long_ago))
    sweep_beside(file)
    assert set(tmp_path.iterdir()) == {made[1], made[2], other}
