"""Place: the devices that a plan is for, and how many bytes of them the trainer may use.

It is this machine's cards, its CPU, or a card that is not here.
"""

from __future__ import annotations

import shlex
from typing import Literal, NamedTuple

from harness.artifacts import Machine
from harness.errors import HarnessError
from harness.plan import cards
from harness.plan.cards import Card
from harness.plan.devices import Device, alike, figures, free_of_each, offered
from harness.received.text import word
from harness.recipe.parameters import counts
from harness.recipe.schema import Recipe
from harness.run.cuda import check_device
from harness.units import GIB, MIB, format_bytes, format_count

# A model above this size is trained on a GPU; on a CPU only on explicit request.
CPU_PARAMETERS = 100_000_000
# The CUDA context and the libraries' own memory take 0.5 to 1 GiB before the first buffer. Source: facts on
# compiling for an absent GPU.
CONTEXT_BYTES = GIB
# Fragmentation and autotuning scratch: one published run failed at 72.8 GiB computed of a pool of 75 GiB, 3 %
# of the pool.
_MARGIN_SHARE, _MARGIN_LEAST = 0.03, GIB // 2
# Under WSL2 Windows takes from the card at any time, and the driver then spills to host memory instead of
# failing.
_WSL_MARGIN = GIB
HOST_MARGIN_BYTES = 512 * MIB


class Place(NamedTuple):
    """The devices of a plan. `card` holds the figures that XLA compiles for.

    `named`: these figures are those of this very model. `here`: the card is in this machine. `stands_in`: the
    atlas was made for other cards of its architecture. Bytes are of one device; None means not known and not
    checked. `shared`: CPU and GPU have one memory. Then `pool_bytes` are free for both together, and
    `free_bytes` is how much of them the GPU may take. `hosts` machines have the devices, each an
    equal number; plan.cluster fills in their names, cards and network.
    """

    name: str
    platform: Literal["cpu", "cuda"]
    card: Card | None = None
    named: bool = True
    here: bool = False
    devices: int = 1
    uuids: tuple[str, ...] = ()
    free_bytes: int | None = None
    total_bytes: int | None = None
    context_bytes: int = 0
    margin_bytes: int = 0
    wsl: bool = False
    cores: float | None = None
    host_usable_bytes: int | None = None
    notes: tuple[str, ...] = ()
    shared: bool = False
    stands_in: bool = False
    pool_bytes: int | None = None
    hosts: int = 1
    host_names: tuple[str, ...] = ()
    host_uuids: tuple[tuple[str, ...], ...] = ()
    net_bytes_per_s: float | None = None
    net: Literal["given", "interface", "assumed", "within"] = "assumed"

    @property
    def usable_bytes(self) -> int | None:
        return (
            None
            if self.free_bytes is None
            else max(0, self.free_bytes - self.context_bytes - self.margin_bytes)
        )

    @property
    def pool_usable_bytes(self) -> int | None:
        """Bytes that device and host may take together; None if each has its own memory."""
        return (
            None
            if self.pool_bytes is None
            else max(0, self.pool_bytes - self.context_bytes - self.margin_bytes)
        )

    @property
    def memory_fraction(self) -> float | None:
        """The share of the card's total that JAX may take: all free bytes except the context.

        The margin is for fragmentation inside that share.
        """
        if not self.here or self.platform == "cpu" or not self.total_bytes or self.free_bytes is None:
            return None
        return int(1000 * (self.free_bytes - self.context_bytes) / self.total_bytes) / 1000

    def fraction_beside(self, host_bytes: int, device_bytes: int) -> float | None:
        """The share of a shared memory that JAX may take at once.

        It is what `host_bytes` leave of the pool, or what JAX's own largest phase needs, if that is more.
        """
        if not self.here or not self.total_bytes or self.pool_bytes is None:
            return None
        share = max(self.pool_bytes - self.context_bytes - host_bytes, device_bytes + self.margin_bytes)
        return int(1000 * share / self.total_bytes) / 1000

    def idle(self) -> Place:
        """The same place with nothing else on its cards."""
        return self._replace(free_bytes=self.total_bytes)


def absent(
    gpu: str | None, vram_bytes: int | None, host_ram_bytes: int | None, *, clusters: bool = False
) -> Place:
    """The place for the card `gpu`, "NAME", "NAME:COUNT" or "NAME:COUNTxHOSTS", idle.

    Only for a caller that plans for `clusters` may there be several hosts. With `vram_bytes` it is the same
    chip with that much memory. Without a name it is the card nearest in memory.
    Raises: HarnessError "gpu-unknown", "gpu-too-old", "gpu-count-invalid".
    """
    name, count, hosts = _name_and_count(gpu) if gpu is not None else (cards.nearest(vram_bytes or 0), 1, 1)
    if hosts > 1 and not clusters:
        raise HarnessError(
            "gpu-count-invalid",
            f"--gpu {gpu!r} names several machines, and this plan is for one",
            got=f"{hosts} hosts",
            need="NAME or NAME:COUNT",
            fix=f"--gpu {word(f'{name}:{count}')}",
        )
    key, card, notes = _card_named(name, vram_bytes)
    title = (
        f"a card of {format_bytes(vram_bytes)}" if gpu is None else f"{count} x {key}" if count > 1 else key
    )
    place = Place(
        title if hosts == 1 else f"{hosts} hosts of {title}",
        "cuda",
        card,
        named=key in cards.names(),
        stands_in=key not in cards.CARDS,
        devices=count * hosts,
        hosts=hosts,
        free_bytes=card.memory_bytes,
        total_bytes=card.memory_bytes,
        notes=tuple(notes),
    )
    if card.shared:
        return _with_margins(_sharing(place, vram_bytes, host_ram_bytes, card.memory_bytes))
    return _with_margins(place)._replace(host_usable_bytes=_host_usable(host_ram_bytes))


def instead(place: Place, gpu: str) -> Place:
    """The idle card `gpu` in the machine of `place`: with its host memory, and under WSL2 with its limits."""
    other = absent(gpu, None, None)
    if place.shared:
        return other
    return _with_margins(other, wsl=place.wsl)._replace(host_usable_bytes=place.host_usable_bytes)


def _card_named(name: str, vram_bytes: int | None) -> tuple[str, Card, list[str]]:
    """(key, figures, notes) of a card.

    If `vram_bytes` is given, a card that is known only by its series gets its own name as its key.
    Raises: HarnessError "gpu-unknown", "gpu-too-old".
    """
    try:
        key = cards.find(name) if vram_bytes is None else cards.sized(name, vram_bytes)
    except HarnessError as error:
        card = (
            cards.of_series(name, vram_bytes)
            if vram_bytes is not None and error.code == "gpu-unknown"
            else None
        )
        if card is None:
            raise
        return (
            name,
            card,
            [
                f"{name} is not in the table of cards: taken as {card.device}'s architecture with"
                f" {format_bytes(vram_bytes)}"
            ],
        )
    card = cards.card(key)
    if vram_bytes is None or vram_bytes == card.memory_bytes:
        return key, card, []
    return (
        key,
        card._replace(cuda_bytes=vram_bytes),
        [f"a card of {format_bytes(vram_bytes)} with the other figures of {key}"],
    )


def _sharing(
    place: Place, vram_bytes: int | None, host_ram_bytes: int | None, available: int | None
) -> Place:
    """A place where CPU and GPU share one memory.

    The given host memory is the pool. The given card memory is the GPU's part of the pool.
    """
    said = host_ram_bytes if host_ram_bytes is not None else vram_bytes
    pool = available if said is None else said
    free = pool if vram_bytes is None or pool is None else min(vram_bytes, pool)
    # JAX's share is a share of what the kernel calls total, whatever sizes were given.
    total = place.total_bytes if place.here and place.total_bytes is not None else free
    return place._replace(
        shared=True, pool_bytes=pool, free_bytes=free, total_bytes=total, host_usable_bytes=_host_usable(pool)
    )


def option_for(device: str) -> str:
    """The option of `harness plan` that asks for a device of a plan: "2 x a100_80" is --gpu a100_80:2."""
    hosts, of, rest = device.partition(" hosts of ")
    count, cross, name = (rest if of else device).partition(" x ")
    if not (cross and count.isdigit()):
        count, name = "1", rest if of else device
    if name.startswith("a card of "):
        amount, unit = name.removeprefix("a card of ").split()
        return f"--vram-gib {amount if unit == 'GiB' else f'{float(amount) / 1024:.3g}'}"
    each = f"{count}x{hosts}" if of else count
    return f"--gpu {shlex.quote(name if each == '1' else f'{name}:{each}')}"


def present(
    recipe: Recipe,
    machine: Machine,
    *,
    device: str | None,
    vram_bytes: int | None,
    host_ram_bytes: int | None,
) -> Place:
    """This machine's freest card with the cards of the same model that are about as free, or its CPU.

    A card without bfloat16 is left out where another is there.
    Raises: HarnessError "no-gpu", "gpu-memory-unknown", "gpu-too-old", "device-unknown".
    """
    check_device(device)
    host = machine.host
    ram = host_ram_bytes if host_ram_bytes is not None else host.ram_available_bytes
    around = Place("", "cpu", here=True, cores=host.cores, host_usable_bytes=_host_usable(ram))
    found, older = offered(machine)
    if found and device != "cpu":
        around = around._replace(notes=tuple(older))
        return _on_cards(around, found, vram_bytes, host_ram_bytes, wsl=bool(host.wsl))
    total, _ = counts(recipe.model, recipe.train.trained)
    if device == "cuda" or (device is None and total > CPU_PARAMETERS):
        mend = machine.gpu_fix or "harness probe shows what is here"
        other = (
            f"harness plan --recipe {shlex.quote(recipe.name)} --gpu rtx_4090 plans for a card that is not"
            " here; --recipe smoke trains a tiny model on the CPU"
        )
        raise HarnessError(
            "no-gpu",
            f"recipe {recipe.name} trains a model of {format_count(total)} parameters, and there is no usable"
            " GPU here",
            got=machine.gpu_error or "no GPU visible",
            need="an NVIDIA GPU (see: harness probe)",
            fix=f"{mend}; or {other}" if machine.gpu_missing or not machine.gpu_fix else mend,
        )
    return around._replace(name="cpu", free_bytes=ram, margin_bytes=HOST_MARGIN_BYTES)


def _on_cards(
    around: Place, found: list[Device], vram_bytes: int | None, host_ram_bytes: int | None, *, wsl: bool
) -> Place:
    said = vram_bytes if vram_bytes is not None else host_ram_bytes
    if said is not None and all(each.gpu.integrated for each in found):
        found = [each._replace(free=said, total=each.total or said) for each in found]
    elif vram_bytes is not None:
        found = [each._replace(free=vram_bytes, total=vram_bytes) for each in found]
    known = [each for each in found if each.free is not None]
    if not known:
        gpu = found[0].gpu
        raise HarnessError(
            "gpu-memory-unknown",
            f"NVML does not tell how much memory is free on {found[0].name}, so nothing can be planned"
            " for it",
            got=gpu.unknown.get("free_bytes") or gpu.unknown.get("total_bytes") or "no figure",
            need="free bytes",
            fix=(
                "--vram-gib X says how many GiB are free; or harness plan --gpu NAME for an idle card of this"
                " kind"
            ),
        )
    likes = alike(known)
    best, total = likes[0], min(each.size for each in likes)
    card, named = figures(best, total)
    notes = [*around.notes]
    notes += [
        f"{each.name} (GPU {each.gpu.index}) is left out: NVML does not tell its free memory"
        for each in found
        if each.free is None
    ]
    if not named:
        notes.append(
            f"{best.name} is not in the table of cards: taken as {card.device}'s architecture with its own"
            f" {format_bytes(total)}"
        )
    place = around._replace(
        name=best.name if len(likes) == 1 else f"{len(likes)} x {best.name}",
        platform="cuda",
        card=card,
        named=named,
        devices=len(likes),
        uuids=tuple(each.uuid for each in likes if each.uuid),
        free_bytes=free_of_each(likes, CONTEXT_BYTES),
        total_bytes=total,
        notes=tuple(notes),
    )
    if best.gpu.integrated:
        place = _sharing(place, vram_bytes, host_ram_bytes, best.free)
    return _with_margins(place, wsl=wsl)


def _with_margins(place: Place, *, wsl: bool = False) -> Place:
    taken = place.pool_bytes if place.shared else place.total_bytes
    margin = max(_MARGIN_LEAST, int(_MARGIN_SHARE * (taken or 0))) + (_WSL_MARGIN if wsl else 0)
    return place._replace(context_bytes=CONTEXT_BYTES, margin_bytes=margin, wsl=wsl)


def _host_usable(ram_bytes: int | None) -> int | None:
    return None if ram_bytes is None else max(0, ram_bytes - HOST_MARGIN_BYTES)


def _name_and_count(gpu: str) -> tuple[str, int, int]:
    """(name, cards of a host, hosts) of "NAME", "NAME:COUNT" or "NAME:COUNTxHOSTS"."""
    name, colon, count = gpu.rpartition(":")
    if not colon:
        return gpu, 1, 1
    each, times, hosts = count.partition("x")
    if not all(text.isdecimal() and 1 <= int(text) <= 1024 for text in (each, hosts if times else "1")):
        raise HarnessError(
            "gpu-count-invalid",
            f"--gpu {gpu!r} does not say how many cards",
            got=count,
            need="NAME or NAME:COUNT, a count from 1; NAME:COUNTxHOSTS for several machines",
            fix=f"--gpu {word(f'{name}:2')}",
        )
    return name, int(each), int(hosts or 1)
