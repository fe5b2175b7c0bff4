"""An Orbax handler for an item of small text files: the statistics, and what the harness records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from harness.received.files import ARTIFACT_BYTES, read_received, walk
from harness.received.names import below
from harness.run.peers import ALONE, Peers


class TextFiles(ocp.CheckpointHandler):
    """Writes and reads an item of text files. Of several processes the first one writes them."""

    def __init__(self, peers: Peers = ALONE) -> None:
        self._peers = peers

    def save(self, directory: Path, args: SaveTextFiles) -> None:
        if self._peers.index:
            return
        for name, text in args.files.items():
            path = below(Path(directory), name, "the name of a text file")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def restore(self, directory: Path, args: Any = None) -> dict[str, str]:
        del args
        root = Path(directory)
        return {
            str(path.relative_to(root)): read_received(path, root, ARTIFACT_BYTES).decode()
            for path in walk(root)
        }


@ocp.args.register_with_handler(TextFiles, for_save=True, for_restore=True)
@dataclasses.dataclass
class SaveTextFiles(ocp.args.CheckpointArgs):
    files: dict[str, str]
