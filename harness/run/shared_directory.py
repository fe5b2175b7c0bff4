"""Checks that all processes of a run see one run directory."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from harness.errors import HarnessError
from harness.received.files import MARK_BYTES, read_received
from harness.received.text import word
from harness.run.directory import write_atomic
from harness.run.peers import Peers

# A network's file system may show a new file late.
_LATE_S = 4.0


def check_shared(directory: Path, peers: Peers) -> None:
    """Checks that what process 0 writes into `directory` is there for all.

    A save into a directory that is not shared would wait for the other processes' parts until its time-out.
    Raises: HarnessError "directory-not-shared" in all processes.
    """
    nonce = secrets.token_hex(16)
    name = f".shared-{nonce}"

    def write() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / name, nonce)

    name = peers.agree(name)
    nonce = name.removeprefix(".shared-")
    try:
        peers.first(write)
        seen = peers.gather("" if _sees(directory / name, nonce) else str(directory))
    finally:
        if peers.index == 0:
            (directory / name).unlink(missing_ok=True)
    blind = [index for index, where in enumerate(seen) if where]
    if blind:
        raise HarnessError(
            "directory-not-shared",
            "not all processes see the run directory that process 0 writes into; nothing was started",
            got=", ".join(f"process {index} ({peers.hosts[index]}) at {seen[index]}" for index in blind),
            need="one directory that all machines share, at the path that each is given",
            fix=f"put {word(directory.name)} on a file system that is mounted on every machine (NFS, Lustre)",
        )


def _sees(path: Path, nonce: str) -> bool:
    """Whether the file is there, now or a little later."""
    deadline = time.monotonic() + _LATE_S
    while True:
        try:
            # Listing a directory makes NFS ask for what is new in it.
            if any(path.parent.iterdir()) and read_received(path, path.parent, MARK_BYTES) == nonce.encode():
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
