"""A new directory that is there whole, or not at all."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.checkpoint.failures import no_space
from harness.errors import HarnessError
from harness.received.files import there
from harness.received.text import word
from harness.received.writing import name_to_disk, to_disk
from harness.run.steps import INTERRUPTED, PARAMS
from harness.units import MIB, format_bytes


def refuse_inside(destination: Path, sources: Iterable[Path]) -> None:
    """Refuses a destination inside one of the `sources`, which an export only reads.

    `sources` are locations of parameters: an Orbax item stands for its step too.
    Raises: HarnessError "export-exists".
    """
    real = destination.resolve()
    for source in sources:
        home = source.parent if source.name == PARAMS else source
        if source.is_dir() and real.is_relative_to(home.resolve()):
            raise HarnessError(
                "export-exists",
                f"{destination} lies inside {home}, which is exported and stays as it is",
                need="a new directory outside of it",
                fix=f"name another destination, for example {word(home.with_name(f'{home.name}-export'))}",
            )


@contextlib.contextmanager
def whole_or_nothing(destination: Path, need_bytes: int) -> Iterator[Path]:
    """Yields a directory that becomes `destination` if the block succeeds, and is removed if it fails.

    Its name is new, so no other data is overwritten or removed. What a killed export leaves has INTERRUPTED
    in its name.
    Raises: HarnessError "export-exists", "disk-full", "export-failed".
    """
    if there(destination):
        raise HarnessError(
            "export-exists",
            f"{destination} is there already",
            need="a new directory",
            fix=f"name another destination, for example {word(_free(destination))}",
        )
    temporary = destination.with_name(f"{destination.name}{INTERRUPTED}-{secrets.token_hex(8)}")
    made = False
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        need, free = need_bytes + need_bytes // 20 + MIB, shutil.disk_usage(destination.parent).free
        if free < need:
            raise _disk_full(destination, f"{format_bytes(free)} free", f"{format_bytes(need)} free")
        temporary.mkdir()
        made = True
        yield temporary
        # A power cut may not leave the name with empty files.
        to_disk(temporary)
        temporary.rename(destination)
        name_to_disk(destination)
    except (OSError, ValueError) as error:
        if no_space(str(error)):
            raise _disk_full(destination, None, None) from error
        raise HarnessError(
            "export-failed",
            f"cannot write {destination}: {str(error)[:300]}",
            need="a writable directory on a working disk",
            fix="name another destination",
        ) from error
    finally:
        if made:
            shutil.rmtree(temporary, ignore_errors=True)


def _free(destination: Path) -> Path:
    """A name like the destination's that nothing has yet."""
    names = (destination.with_name(f"{destination.name}-{n}") for n in itertools.count(2))
    return next(name for name in names if not there(name))


def _disk_full(destination: Path, got: str | None, need: str | None) -> HarnessError:
    return HarnessError(
        "disk-full",
        f"no space for {destination}; nothing was left there",
        got=got,
        need=need,
        fix=f"free space in {destination.parent}, or name another disk",
    )
