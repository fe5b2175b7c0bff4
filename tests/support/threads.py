"""Peers that are threads of one process, for what peers say to each other without arrays."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from harness.errors import HarnessError
from harness.run.peers import Peers

T = TypeVar("T")


class Thread:
    """Peer `index` of `count`; they share `said` and `meet`."""

    def __init__(self, index: int, count: int, said: list[str], meet: threading.Barrier) -> None:
        self.index, self.count, self._said, self._meet = index, count, said, meet
        self.hosts = [f"host-{number}" for number in range(count)]

    def barrier(self) -> None:
        self._meet.wait(60)

    def gather(self, text: str) -> list[str]:
        self._said[self.index] = text
        self.barrier()
        found = list(self._said)
        self.barrier()
        return found

    def agree(self, text: str) -> str:
        return self.gather(text)[0]

    def first(self, action: Callable[[], object]) -> None:
        failed = [""]
        if self.index == 0:
            try:
                action()
            except HarnessError as error:
                failed = [error.code]
        code = self.agree(failed[0])
        if code:
            raise HarnessError(code, "process 0 failed", fix="")


def together(count: int, act: Callable[[Peers], T]) -> list[T]:
    """What `act` gives in each of `count` peers."""
    said, meet = [""] * count, threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda index: act(Thread(index, count, said, meet)), range(count)))
