"""Evaluations with the fake simulator and a plain server, in this process and as the verb."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from websockets.sync.server import Server, ServerConnection, serve

from harness.artifacts.evaluation import Evaluation, Rate
from harness.evaluate.measure import Wish, measure
from harness.evaluate.options import asked_of, rules_of
from harness.evaluate.remote import Address
from harness.evaluate.source import Source, of_control, of_server
from harness.run.directory import RunDir
from harness.serve.wire import pack, unpack

ROOT = Path(__file__).parents[2]
Answer = Callable[[dict[str, Any], int], Any]


def actions_of(observation: dict[str, Any], number: int) -> Any:  # noqa: ARG001
    """Actions that follow from the observation and its noise alone, as a policy's do."""
    seen = b"".join(
        np.asarray(observation[name]).tobytes() for name in ("observation/image", "observation/state")
    )
    text = seen + str(observation.get("noise_seed")).encode() + observation["prompt"].encode()
    seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal((10, 7)).astype(np.float32)


METADATA: dict[str, Any] = {
    "protocol": "openpi",
    "contract_version": 1,
    "checkpoint": {"sha256": "c" * 64, "step": 29},
    "recipe": {"name": "smoke", "sha256": "e" * 64},
    "cameras": [
        {"camera": "base_0_rgb", "keys": ["image", "observation/image"]},
        {"camera": "left_wrist_0_rgb", "keys": ["wrist_image", "observation/wrist_image"]},
    ],
    "state": {"keys": [["state"], ["observation/state"]], "dimensions": 8, "needed": True},
    "actions": {"key": "actions", "horizon": 10, "dimensions": 7},
    "noise_seed": {"key": "noise_seed", "needed": False, "least": 0, "most": 2**32 - 1},
    "norm_stats_sha256": "5" * 64,
    "sampling_steps": 10,
    "deviations": [],
}


class Policy:
    """A server of openpi's protocol in a thread. `answer(observation, number)` gives actions, or another map,
    None to close the connection, or a text for a refusal. `seen` are the observations.
    """

    def __init__(self, answer: Answer = actions_of, metadata: dict[str, Any] | None = None) -> None:
        self.answer, self.metadata = answer, METADATA if metadata is None else metadata
        self.seen: list[dict[str, Any]] = []
        self.connections: list[ServerConnection] = []
        self._lock = threading.Lock()
        self._server: Server = serve(self._client, "127.0.0.1", 0, compression=None, max_size=None)
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def _client(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        connection.send(pack(self.metadata))
        for frame in connection:
            assert isinstance(frame, bytes)
            observation = unpack(frame)
            with self._lock:
                number = len(self.seen)
                self.seen.append({key: value for key, value in observation.items() if "image" not in key})
            found = self.answer(observation, number)
            if found is None:
                return
            if isinstance(found, str):
                connection.send(found)
            else:
                connection.send(pack(found if isinstance(found, dict) else {"actions": found}))

    def stop(self) -> None:
        self._server.shutdown()
        for connection in self.connections:
            connection.close()


@contextlib.contextmanager
def policy(answer: Answer = actions_of, metadata: dict[str, Any] | None = None) -> Iterator[Policy]:
    found = Policy(answer, metadata)
    try:
        yield found
    finally:
        found.stop()


class Told:
    """A console that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.rates: list[tuple[int, int, list[Rate]]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)

    def measured(self, done: int, asked: int, rates: list[Rate], left_s: float | None) -> None:
        assert left_s is None or left_s >= 0
        self.rates.append((done, asked, rates))


def plan_file(path: Path, **plan: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    file = path / "plan.json"
    file.write_text(json.dumps(plan))
    return file


def starter(path: Path, **plan: Any) -> Callable[[], subprocess.Popen[bytes]]:
    """Starts the fake simulator with a plan."""
    command = [sys.executable, "-m", "tests.support.fake_simulator", str(plan_file(path, **plan))]
    pipe = subprocess.PIPE
    return lambda: subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT)


def simulator(path: Path, **plan: Any) -> Path:
    """A directory that HARNESS_SIMULATOR can name: its Python is the fake simulator."""
    file = plan_file(path, **plan)
    python = path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT}\nexec {sys.executable} -m tests.support.fake_simulator {file}\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return path


def wish(
    out: Path, suites: str = "goal", tasks: str | None = "0-2", episodes: int = 2, **changes: Any
) -> Wish:
    kind = changes.pop("kind", "server")
    rules, deviations = rules_of(changes.pop("protocol", "openpi"), changes.pop("depart", []))
    mixed, repeats, seed = changes.get("sequential", False), changes.pop("repeats", 1), changes.pop("seed", 0)
    asked = asked_of(kind, suites, tasks, episodes, rules, repeats=repeats, seed=seed, mixed=mixed)
    return Wish(asked, rules, deviations, RunDir(out), **({"videos": "none", "patience_s": 60.0} | changes))


def evaluated(
    out: Path,
    *,
    source: Source | None = None,
    server: Policy | None = None,
    plan: dict[str, Any] | None = None,
    console: Told | None = None,
    **changes: Any,
) -> Evaluation:
    """An evaluation of a control, or of a server, with the fake simulator."""
    if source is None:
        patience_s = changes.get("patience_s", 60.0)
        source = of_server(Address(server.uri, None, patience_s)) if server else of_control("zero")
    changes.setdefault("kind", source.kind)
    start = starter(out.parent / f"plan-{out.name}", **(plan or {}))
    return measure(wish(out, **changes), source, start, console or Told())


def verb(*options: str, simulator: Path, **environment: str) -> subprocess.Popen[str]:
    """`harness evaluate` as a process."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "evaluate", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "HARNESS_SIMULATOR": str(simulator)} | environment,
    )
