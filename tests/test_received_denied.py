"""Tests that what the system refuses is said in words, and that a mistake of ours stays a traceback."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.received.denied import denied


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
