"""What the planner is asked, and where its answers come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from harness.artifacts import HostReport
from harness.plan.atlas import Atlas
from harness.plan.compile import compiled


class Ask(NamedTuple):
    """The user's request to the planner, beside the recipe.

    `gpu` names a card that is not here. `recompile` asks the compiler even if the atlas has the answer.
    `hosts` are the machines of a run that several processes train, `net` the rate of a machine's network in
    bytes a second. `slower` allows them to be slower together than one alone.
    """

    gpu: str | None = None
    device: str | None = None
    vram_bytes: int | None = None
    host_ram_bytes: int | None = None
    exact: bool = False
    recompile: bool = False
    hosts: tuple[HostReport, ...] = ()
    net: float | None = None
    slower: bool = False


class Tools(NamedTuple):
    """The sources of answers: the shipped atlas (None: no atlas) and the compiler.

    `say` reports what is being compiled. `thorough` asks the compiler about faster plans, with
    other microbatches too, also where the atlas has the answer of a slower one.
    """

    atlas: Atlas | None
    compile: Callable[..., object] = compiled
    say: Callable[[str], None] = lambda _: None
    thorough: bool = False
