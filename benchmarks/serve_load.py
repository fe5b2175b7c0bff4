"""The server of `harness serve` under load: its own time, slow calls, mutated frames, and hours of clients.

    python -m benchmarks.serve_load overhead              # time of a round trip without a model, 301 kB
    python -m benchmarks.serve_load slow --seconds 45     # a call that takes so long
    python -m benchmarks.serve_load mutated --count 1000  # frames with changed bytes
    python -m benchmarks.serve_load load --seconds 3600   # 8 clients of the tiny model, each answer checked

The server is a process of its own, on this machine's loopback. `overhead`, `slow` and `mutated` serve an
engine that computes nothing; `load` serves a tiny checkpoint through the verb. Exit code 1 if a bound does
not hold.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from harness.serve.client import Client
from harness.serve.types import Inputs
from harness.serve.wire import pack, unpack
from tests.support.served import RowEngine, libero, serving
from tests.support.tiny import tiny

# Answers that take longer than this count as a hang.
_HANG_S = 30
# More growth than caches of Python and of the allocator account for.
_MOST_GROWTH_BYTES = 32 * 2**20
_CLIENTS, _DISTINCT = 8, 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("overhead", "slow", "mutated", "load"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, or of the slow call")
    parser.add_argument("--count", type=int, default=1000, help="round trips, or mutated frames")
    parser.add_argument("--batch", type=int, default=4, help="rows of the load's batch")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between a client's requests (load)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.part == "overhead":
        return _overhead(asked.count)
    if asked.part == "slow":
        return _slow(asked.seconds)
    if asked.part == "mutated":
        return _mutated(asked.count, asked.seed)
    return _load(asked.seconds, asked.batch, asked.pause)


class Child:
    """A server without a model, in a process of its own."""

    def __init__(self, delay_s: float = 0.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, delay_s), daemon=True)
        self._process.start()
        self.port: int = self._pipe.recv()
        self.memory = psutil.Process(self._process.pid)

    @property
    def uri(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def alive(self) -> bool:
        return self._process.is_alive()

    def end(self) -> None:
        self._pipe.send("end")
        self._process.join(30)


class NoModel(RowEngine):
    """Gives each row its noise, after the delay."""

    def sample(self, inputs: Inputs, noise: np.ndarray, previous: Any = None) -> np.ndarray:  # noqa: ARG002
        time.sleep(self.delay_s)
        return noise


def _serve(pipe: Any, delay_s: float) -> None:
    # Pictures of the real model's size, which are not resized.
    recipe = tiny("model.image_size=224")
    with serving(NoModel(recipe, delay_s=delay_s), recipe) as running:
        pipe.send(running.port)
        pipe.recv()


def _overhead(count: int) -> int:
    child = Child()
    observation = libero(noise_seed=1)
    size = len(pack(observation))
    client = Client(child.uri)
    for _ in range(50):
        client.infer(observation)
    times = []
    for _ in range(count):
        began = time.perf_counter()
        client.infer(observation)
        times.append(1000 * (time.perf_counter() - began))
    client.close()
    child.end()
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    print(
        f"{count} round trips of {size:,} bytes without a model: p50 {p50:.2f} ms, p95 {p95:.2f},"
        f" p99 {p99:.2f}"
    )
    return 0 if p50 <= 2.0 else 1


def _slow(seconds: float) -> int:
    child = Child(delay_s=seconds)
    health: list[float] = []
    # As openpi-client opens it: a ping every 20 s, and 20 s for its answer.
    with connect(child.uri, compression=None, max_size=None, proxy=None) as slow:
        slow.recv()
        began = time.monotonic()
        slow.send(pack(libero()))
        while time.monotonic() - began < seconds - 1:
            asked = time.monotonic()
            asking = http.client.HTTPConnection("127.0.0.1", child.port, timeout=10)
            asking.request("GET", "/healthz")
            assert asking.getresponse().status == 200
            with connect(child.uri, compression=None, max_size=None, proxy=None) as other:
                other.recv()
            health.append(1000 * (time.monotonic() - asked))
            time.sleep(0.5)
        answered = "actions" in unpack(slow.recv())
    child.end()
    print(
        f"a call of {seconds:g} s: answered {answered}; health and a handshake meanwhile p50"
        f" {np.median(health):.1f} ms"
    )
    return 0 if answered else 1


def mutated(frame: bytes, chance: random.Random) -> bytes:
    """The frame with bytes changed, cut out, put in, or taken from elsewhere; mostly near its structure."""
    found = bytearray(frame)
    # Keys, types, shapes and lengths stand in few bytes between the pictures' many.
    marks = [
        at
        for at in range(len(frame) - 4)
        if frame[at : at + 4] in (b"__nd", b"dtyp", b"shap", b"data", b"prom")
    ]
    for _ in range(chance.randint(1, 6)):
        at = (
            chance.choice(marks) + chance.randint(-8, 40)
            if chance.random() < 0.8
            else chance.randrange(len(found))
        ) % len(found)
        kind = chance.randrange(6)
        if kind == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at] = chance.choice(
                (0x00, 0x7F, 0x80, 0x90, 0xC0, 0xC1, 0xC4, 0xC6, 0xC9, 0xDD, 0xDF, 0xFF)
            )
        elif kind == 2:
            del found[at : at + chance.randint(1, 9)]
        elif kind == 3:
            found[at:at] = chance.randbytes(chance.randint(1, 9))
        elif kind == 4:
            found = found[: max(at, 1)]
        else:
            source = chance.randrange(len(found))
            length = chance.randint(1, 32)
            found[at : at + length] = found[source : source + length]
        if not found:
            return b""
    return bytes(found)


def _mutated(count: int, seed: int) -> int:
    child, chance = Child(), random.Random(seed)
    good = pack(libero(size=16, noise_seed=1))
    refused = answered = hung = closed = 0
    connection = connect(child.uri, compression=None, max_size=None, proxy=None).__enter__()
    connection.recv()
    before = 0
    for number in range(count):
        if number == min(count // 5, 200):
            before = child.memory.memory_info().rss
        try:
            connection.send(mutated(good, chance))
            found = connection.recv(timeout=_HANG_S)
        except TimeoutError:
            hung += 1
            break
        except ConnectionClosed:
            closed += 1
            break
        refused, answered = refused + isinstance(found, str), answered + isinstance(found, bytes)
        if isinstance(found, str) and ("\n" in found or "Traceback" in found):
            print(found)
            return 1
    if not hung + closed:
        connection.send(good)
        closed += not isinstance(connection.recv(timeout=_HANG_S), bytes)
    grown, alive = child.memory.memory_info().rss - before, child.alive()
    connection.close()
    child.end()
    print(
        f"{count} mutated frames: {refused} refused in one sentence, {answered} still valid and answered,"
        f" {hung} hangs, {closed} connections closed, server alive {alive}, memory {grown / 2**20:+.1f} MiB"
    )
    return 0 if alive and not hung and not closed and grown < _MOST_GROWTH_BYTES else 1


class Load:
    """What the clients of a load have seen."""

    def __init__(self) -> None:
        self.answers, self.lost, self.wrong = [0] * _CLIENTS, 0, 0
        self.errors: list[str] = []

    def talk(self, port: int, number: int, until: float, pause: float) -> None:
        """Asks in turn for the same few observations, whose answers must be the same bits each time.

        It waits `pause` seconds after each.
        """
        asked = [libero(100 * number + n, noise_seed=1000 * number + n) for n in range(_DISTINCT)]
        known: dict[int, bytes] = {}
        try:
            client = Client(f"ws://127.0.0.1:{port}")
            while time.monotonic() < until:
                n = self.answers[number] % _DISTINCT
                actions = client.infer(asked[n])["actions"].tobytes()
                self.wrong += known.setdefault(n, actions) != actions
                self.answers[number] += 1
                time.sleep(pause)
            client.close()
            if len(set(known.values())) != len(known):
                self.wrong += 1
        except Exception as error:
            self.lost += 1
            self.errors.append(f"client {number}: {type(error).__name__}: {error}")


def _load(seconds: float, batch: int, pause: float) -> int:
    from tests.support.serve_verb import Verb
    from tests.test_predict import save

    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "manifest.json").write_text("{}")
        save(root / "checkpoints", 3)
        verb = Verb(root / "checkpoints/3", root, "--batch", str(batch), "--steps", "2")
        process, load = psutil.Process(verb.process.pid), Load()
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=load.talk, args=(verb.port, number, until, pause))
            for number in range(_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        settle = min(60.0, seconds / 3)
        time.sleep(settle)
        before = most = process.memory_info().rss
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.5)
            most = max(most, process.memory_info().rss)
        after = process.memory_info().rss
        code = verb.end()
        print(
            f"{_CLIENTS} clients for {seconds:g} s, batch {batch}: {sum(load.answers):,} answers"
            f" ({min(load.answers):,} to {max(load.answers):,} a client), {load.lost} lost, {load.wrong} of"
            f" another client or other bits; memory {before / 2**20:.0f} MiB after {settle:.0f} s,"
            f" {after / 2**20:.0f} at the end, at most {most / 2**20:.0f}; exit code {code}"
        )
        print("\n".join(load.errors[:5]), end="\n" if load.errors else "")
        good = not load.lost and not load.wrong and code == 0 and min(load.answers) > 0
        return 0 if good and after - before < _MOST_GROWTH_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
