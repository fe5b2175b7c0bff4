"""Runs things in the simulator's own Python: programs of ours, and workers as an evaluation starts them."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from harness.simulate import boot, frames, protocol

PROGRAMS = Path(__file__).parent / "programs"
# The bootstrap that a worker is started with, then a file instead of a module.
_RUN = "import runpy, sys\ndel sys.argv[:2]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"


def run(program: str, asked: Any, *, environ: Mapping[str, str] | None = None, first: str = "") -> Any:
    """What a program of this directory answers to `asked`, both as JSON. `first` is run before it.

    The program's standard output is the log; its answer goes to the file that its last argument names.
    """
    python, isolated, c, bootstrap, package, _ = boot.command()
    make_harness = bootstrap.rsplit("importlib.import_module", 1)[0]
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "answer.json"
        command = [python, isolated, c, make_harness + first + "\n" + _RUN, package]
        done = subprocess.run(
            [*command, str(PROGRAMS / f"{program}.py"), json.dumps(asked), str(out)],
            env={**boot.environment(), **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return json.loads(out.read_text())


class Talk:
    """A worker, asked in turn."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def ask(self, message: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        frames.send(self.process.stdin, message, arrays)
        got = frames.receive(self.process.stdout)
        assert got is not None, "the worker ended"
        return got

    def next(self) -> tuple[Any, Any]:
        assert self.process.stdout is not None
        got = frames.receive(self.process.stdout)
        assert got is not None, "the worker ended"
        return got

    def drive(
        self,
        suite: str,
        task: int,
        episode: int,
        policy: str,
        actions: Callable[[int], Any] | None = None,
        *,
        pictures: bool = False,
        **other: Any,
    ) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
        """The last message of an episode, and all queries. `other` are values beside openpi's."""
        values = {**protocol.shipped("openpi").values, **{k.replace("__", "."): v for k, v in other.items()}}
        order = {"do": "drive", "suite": suite, "task": task, "episode": episode, "repeat": 0}
        message, arrays = self.ask({**order, "policy": policy, "protocol": values, "pictures": pictures})
        queries = []
        while message["is"] in ("scene", "query"):
            if message["is"] == "scene":
                message, arrays = self.next()
            else:
                queries.append((message, arrays))
                acts = {"actions": np.asarray(actions(message["number"]))} if actions else {}
                message, arrays = self.ask({"do": "act" if actions else "go on"}, acts)
        return message, queries


@contextmanager
def talking(**environ: str) -> Iterator[Talk]:
    """A worker as `boot.start` starts it, ended afterwards."""
    with tempfile.TemporaryFile() as log:
        process = boot.start(log, {**os.environ, **environ})
        try:
            yield Talk(process)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
