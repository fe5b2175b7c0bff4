"""Which harness this is: its version, and the commit of its source. Asks neither pydantic nor JAX."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import harness

_CHECKOUT = Path(harness.__file__).parent.parent
# What a build says where it knows no commit.
_UNKNOWN = "unknown"


def version(checkout: Path = _CHECKOUT) -> str:
    """The version in the checkout that runs, else the one that pip installed, else "unknown"."""
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == "harness":
            return str(project["version"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        return metadata.version("harness")
    except metadata.PackageNotFoundError:
        return _UNKNOWN


def built_from() -> str | None:
    """The commit that the image's build was told, with "-dirty" behind it where the source was changed."""
    told = os.environ.get("HARNESS_COMMIT", "")
    return told if told not in ("", _UNKNOWN) else None


def commit(checkout: Path = _CHECKOUT) -> str | None:
    """The commit of the source, with "-dirty" behind it where the source was changed. None if unknown.

    The image's environment says it, else git.
    """
    if (told := built_from()) is not None:
        return told
    if (checkout / ".git").exists() and shutil.which("git") is not None:
        describe = ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        command = ["git", "-C", str(checkout), *describe]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    # COMMIT+source.HASH, which docker/revision prints. It does not say whether the source was changed.
    revision = os.environ.get("HARNESS_REVISION", "").partition("+")[0]
    return None if revision in ("", _UNKNOWN) else revision
