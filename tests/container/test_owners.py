"""Tests whose the files are that the containers of compose.yaml left.

Run after ci/smoke, which leaves such files.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container.engine import Checkout, Ended, Engine, of_others

# Images are built here, and read to their last layer.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("images")]

STRANGER = 31415


@pytest.mark.usefixtures("probed")
def test_all_that_was_written_belongs_to_the_owner_of_the_checkout(checkout: Checkout) -> None:
    roots = [checkout.root / name for name in ("runs", "cache", "datasets")]
    assert of_others(os.getuid(), *roots) == []
    # Nothing there is nobody's: to another user all of it would be another's.
    assert len(of_others(os.getuid() + 1, *roots)) > len(roots)


@pytest.fixture(scope="module")
def her(engine: Engine, checkout: Checkout) -> Iterator[Checkout]:
    """A clone and an image of somebody who is not root; afterwards the image is the owner's again."""
    if os.getuid() != 0:
        pytest.skip("only root can become another person")
    home = Path(tempfile.mkdtemp(prefix="harness-tests-"))
    try:
        checkout.done("git", "clone", "--quiet", "--no-hardlinks", ".", str(home / "clone"))
        if (settings := Path.home() / ".docker").is_dir():
            shutil.copytree(settings, home / ".docker", symlinks=True)
        os.chown(home, STRANGER, STRANGER)
        for place, directories, files in os.walk(home):
            for name in (*directories, *files):
                os.chown(Path(place, name), STRANGER, STRANGER, follow_symlinks=False)
        who: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        if engine.address.startswith("unix://"):
            who["extra_groups"] = [os.stat(engine.address.removeprefix("unix://")).st_gid]
        owner = Checkout(engine, home / "clone", env={"HOME": str(home)}, **who)
        # So that the index says whose the files are now, as in a clone that she made.
        owner.done("git", "status", "--short")
        with engine.kept("harness:cpu"):
            owner.build("smoke")
            yield owner
    finally:
        shutil.rmtree(home)


def test_somebody_else_gets_her_own_files(her: Checkout) -> None:
    her.done("mkdir", "runs/probe")
    ended = her.run("smoke", "probe", "--run", "/runs/probe")
    assert ended.code == 0, ended.said
    assert (her.root / "runs" / "probe" / "machine.json").stat().st_size > 0
    assert of_others(STRANGER, her.root / "runs", her.root / "cache") == []


def test_a_user_who_cannot_write_is_refused_with_the_fix(her: Checkout) -> None:
    other: dict[str, str] = {"HARNESS_UID": "4242", "HARNESS_GID": "4242"}
    ended: Ended = her.run("smoke", "train", **other)
    assert ended.code == 2, ended.said
    assert "HARNESS_UID=" in ended.said
