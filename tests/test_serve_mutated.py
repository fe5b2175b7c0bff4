"""Tests that frames with changed bytes are refused in one sentence, quickly, and never break the server."""

from __future__ import annotations

import random
import time

import pytest

from benchmarks.serve_load import mutated
from harness.errors import HarnessError
from harness.serve.wire import pack, unpack
from tests.support.served import libero, reader_of, serving
from tests.support.tiny import tiny
from tests.test_serve_server import raw

FORESEEN = {"frame-invalid", "observation-invalid", "observation-key-missing"}


@pytest.mark.parametrize("sets", [(), ("model.discrete_state_input=true", "data.relative=0-5")])
def test_a_thousand_changed_frames_are_read_or_refused_by_name(sets: tuple[str, ...]) -> None:
    """Whatever else is raised fails the test: a client would read that nobody foresaw it."""
    reader, chance = reader_of(tiny(*sets), (16, 64)), random.Random(1)
    good = pack(libero(size=8, noise_seed=3))
    codes: dict[str, int] = {}
    sentences: list[str] = []
    began = time.monotonic()
    for _ in range(1000):
        code = "read"
        try:
            reader.read(unpack(mutated(good, chance)))
        except HarnessError as refusal:
            code = refusal.code
            sentences.append(str(refusal))
        codes[code] = codes.get(code, 0) + 1
    assert [text for text in sentences if len(text.splitlines()) != 1] == []
    assert codes.keys() == FORESEEN | {"read"}, codes
    assert time.monotonic() - began < 60


def test_a_server_answers_each_changed_frame_and_goes_on() -> None:
    chance, good = random.Random(2), pack(libero(size=8, noise_seed=3))
    with serving() as running, raw(running) as connection:
        connection.recv()
        for _ in range(300):
            connection.send(mutated(good, chance))
            assert connection.recv(timeout=20)
        connection.send(good)
        assert unpack(connection.recv(timeout=20))["actions"].shape == (10, 7)
        assert running.tally.outcomes["failed"] == 0
