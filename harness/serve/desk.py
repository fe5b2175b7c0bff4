"""One request from frame to frame: read, computed with others, answered; and each refusal as one sentence."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.errors import HarnessError
from harness.received.text import one_line
from harness.redact import redact
from harness.serve.batch import Batcher, Sampled
from harness.serve.inputs import Asked, Reader
from harness.serve.wire import pack, unpack

_MOST_SENTENCE = 1500


class Decoded(NamedTuple):
    """A request that keeps the contract, and the seconds that reading it took."""

    asked: Asked
    decode_s: float


class Desk:
    """What serves requests of one checkpoint. `metadata` is the first message of each connection."""

    def __init__(self, reader: Reader, batcher: Batcher, metadata: Mapping[str, Any]) -> None:
        self._reader, self.batcher = reader, batcher
        self.metadata: bytes = pack(dict(metadata))

    def read(self, frame: bytes | str) -> Decoded:
        """The request of a frame.

        Raises: HarnessError "frame-is-text", and those of `unpack` and of `Reader.read`.
        """
        began = time.perf_counter()
        if isinstance(frame, str):
            raise HarnessError(
                "frame-is-text",
                "a request came as a text frame",
                got=f"{len(frame)} characters",
                need="one binary frame of msgpack",
                fix="send what openpi_client.msgpack_numpy.packb makes of the observation",
            )
        asked = self._reader.read(unpack(frame))
        return Decoded(asked, time.perf_counter() - began)

    def lacking(self, asked: Asked) -> set[str]:
        """The cameras of the recipe that the request came without."""
        return self._reader.cameras.keys() - asked.images.keys()

    def reply(
        self, asked: Asked, seed: int, sampled: Sampled, serve_s: float, previous_s: float | None
    ) -> bytes:
        """The answer's frame: the actions, and the times that openpi's clients read.

        Raises: HarnessError "prediction-not-finite".
        """
        timing = {"infer_ms": 1000 * serve_s}
        if previous_s is not None:
            timing["prev_total_ms"] = 1000 * previous_s
        return pack(
            {
                "actions": self._reader.actions(sampled.actions, asked),
                "policy_timing": {"infer_ms": 1000 * sampled.infer_s},
                "server_timing": timing,
                "noise_seed": seed,
            }
        )


def sentence(error: HarnessError) -> str:
    """A refusal as one line: what, got, need, fix. Of a long one the end is left out."""
    return redact(one_line(str(error)))[:_MOST_SENTENCE]
