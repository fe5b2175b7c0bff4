"""Lays into a tree what systems lay among a person's files: macOS, Windows, network disks, NFS."""

from __future__ import annotations

import os
from pathlib import Path


def lay(root: Path, *, beside: str = "") -> None:
    """Such names in every directory of `root`. `beside`: the end of the names that get macOS's `._NAME`."""
    for folder, _, files in list(os.walk(root)):
        for name in (".DS_Store", "Thumbs.db", ".nfs00000000012f00a10000001c"):
            Path(folder, name).write_bytes(b"\0\0\0\1Bud1\x9e\xff")
        for name in files:
            if name.endswith(beside):
                Path(folder, f"._{name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\x9e\xff")
        for name in ("@eaDir", "lost+found"):
            Path(folder, name).mkdir()
            Path(folder, name, "SYNO@.fileindexdb").write_bytes(b"\xff")
