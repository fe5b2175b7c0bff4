"""The installation of openpi: a checkout with its own environment inside, as `uv sync` makes one.

Nothing of it is imported here.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.errors import HarnessError
from harness.openpi.entry import commit_of
from harness.openpi.table import COMMIT
from harness.received.text import word

VARIABLE = "HARNESS_OPENPI"
# The phase of a run in which openpi loads its own modules.
IMPORT = "import"
# The installation in upstream's README, at the pinned commit and without what training does not need.
INSTALL = (
    f"git clone https://github.com/Physical-Intelligence/openpi DIR && cd DIR && git checkout {COMMIT} &&"
    " GIT_LFS_SKIP_SMUDGE=1 uv sync --frozen --no-dev"
)
IN_CONTAINER = "docker compose run --rm train-openpi, whose image has it"

# The first wandb that takes keys of more than 40 characters. Source: facts on the report's troubles.
_NEW_KEYS, _OLD_KEY = (0, 22, 3), 40


class Installation(NamedTuple):
    """An installation of openpi. `commit` is that of the checkout, as `openpi_entry.commit_of` gives it."""

    root: Path
    python: Path
    commit: str

    @property
    def is_pinned(self) -> bool:
        return self.commit.startswith(COMMIT) and not self.commit.endswith("+modified")


def find_installation(environ: Mapping[str, str] = os.environ, *, any_commit: bool = False) -> Installation:
    """The installation that $HARNESS_OPENPI names.

    Raises: HarnessError "openpi-missing", "openpi-environment-missing", "openpi-commit-differs".
    """
    named = environ.get(VARIABLE)
    root = Path(named).expanduser().absolute() if named else None
    if (
        root is None
        or not (root / "scripts" / "train.py").is_file()
        or not (root / "src" / "openpi").is_dir()
    ):
        raise HarnessError(
            "openpi-missing",
            "--backend openpi trains with openpi itself, which is not installed here",
            got=f"{VARIABLE}={named}, which is no checkout of openpi" if named else f"{VARIABLE} is not set",
            need="a checkout of openpi with its environment in .venv",
            fix=f"{IN_CONTAINER}; or {INSTALL}, then {VARIABLE}=DIR",
        )
    python = root / ".venv" / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise HarnessError(
            "openpi-environment-missing",
            f"{root} is a checkout of openpi without its environment",
            got=f"no {python}",
            need="openpi's own lock, installed",
            fix=(
                f"cd {word(root)} && GIT_LFS_SKIP_SMUDGE=1 uv sync --frozen --no-dev (evdev needs"
                f" build-essential and python3-dev); or {IN_CONTAINER}"
            ),
        )
    found = Installation(root, python, commit_of(root))
    if not found.is_pinned and not any_commit:
        raise HarnessError(
            "openpi-commit-differs",
            f"openpi in {root} is not at the commit that the harness knows; nothing was trained",
            got=found.commit[:12] + found.commit[40:],
            need=f"{COMMIT}, without changes",
            fix=(
                f"git -C {word(root)} checkout {COMMIT} (git stash puts changes aside); or --any-commit,"
                " which is recorded"
            ),
        )
    return found


def check_wandb(version: str, environ: Mapping[str, str] = os.environ) -> None:
    """Checks that the installed wandb takes a key of this length.

    The wandb in upstream's lock does not know keys of 86 characters. It would end the run after its data were
    loaded.

    Raises: HarnessError "wandb-too-old".
    """
    key = environ.get("WANDB_API_KEY", "")
    if len(key) in (0, _OLD_KEY) or environ.get("WANDB_MODE") in ("offline", "disabled"):
        return
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if numbers < _NEW_KEYS:
        raise HarnessError(
            "wandb-too-old",
            "openpi's environment has a wandb that refuses keys of this length; nothing was trained",
            got=f"wandb {version or 'unknown'}, a key of {len(key)} characters",
            need=f"wandb {'.'.join(map(str, _NEW_KEYS))} or newer",
            fix=(
                "uv pip install --no-deps 'wandb>=0.24.1,<0.25' in openpi's checkout (recorded), the image's"
                " train-openpi, or WANDB_MODE=offline"
            ),
        )


def crashed_at_import(name: str, got: str) -> HarnessError:
    """The error of an openpi that ended by the signal `name` in the phase `IMPORT`.

    A second attempt would load the same modules.
    """
    return HarnessError(
        "openpi-crashed-at-import",
        f"openpi ended by {name} (exit code {128 + signal.Signals[name]}) while its modules were imported;"
        " nothing was trained",
        got=got,
        need=(
            "openpi's own lock, unchanged: with other versions, or imported in another order, its"
            " libraries crash"
        ),
        fix=(
            "in its checkout: GIT_LFS_SKIP_SMUDGE=1 uv sync --frozen --no-dev; or docker compose run --rm"
            " train-openpi, whose image has it"
        ),
    )
