"""Tests the cards that are not here.

XLA compiles for each, names are read as people write them, and the figures are consistent.
"""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from harness.errors import HarnessError
from harness.plan.cards import CARDS, find, targets
from harness.plan.compile import ABSENT_GPU_OPTIONS
from harness.plan.place import absent
from harness.train import host
from harness.units import GIB, MIB

# A copy of a piece from host memory, or back, begins or ends.
_COPY = re.compile(r"%dynamic-(slice|update-slice)-(start|done)[\w.]* = ")


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_step_compiles_for_every_card(name: str) -> None:
    card = CARDS[name]
    topology = topologies.get_topology_desc(platform="cuda", target_config=card.target(), topology="1x1x1")
    (device,) = topology.devices
    assert device.compute_capability == "{}.{}".format(*card.capability)
    assert device.device_kind == card.device
    place = NamedSharding(topologies.make_mesh(topology, (1,), ("fsdp",)), PartitionSpec())
    step = jax.jit(jax.value_and_grad(lambda w, x: ((x @ w) ** 2).mean()), out_shardings=place)
    shape = jax.ShapeDtypeStruct((64, 64), "float32", sharding=place)
    compiled = (
        step.trace(shape, shape)
        .lower(lowering_platforms=("cuda",))
        .compile(compiler_options=ABSENT_GPU_OPTIONS)
    )
    sizes = compiled.memory_analysis()
    assert sizes.argument_size_in_bytes == 2 * 64 * 64 * 4
    assert sizes.temp_size_in_bytes > 0


def test_the_text_of_a_card_is_what_it_was() -> None:
    """Kept answers of the compiler are found by this text."""
    assert CARDS["rtx_a6000"].target() == (Path(__file__).parent / "golden/rtx_a6000.txtpb").read_text()


@pytest.mark.parametrize("name", sorted(CARDS))
def test_every_text_has_the_figures_of_its_card(name: str) -> None:
    card = CARDS[name]
    fields = dict(re.findall(r"(\w+): ([^\s}]+)", card.target()))
    assert int(fields["device_memory_size"]) == card.memory_bytes
    assert int(fields["core_count"]) == card.processors
    assert int(fields["memory_bandwidth"]) == card.bandwidth * 10**6
    assert int(fields["shared_memory_per_block_optin"]) == int(fields["shared_memory_per_core"]) - 1024
    assert ("feature_extension" in fields) == (card.capability in {(9, 0), (10, 0)})


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_program_finds_a_little_less_than_the_driver_counts(name: str) -> None:
    card = CARDS[name]
    kept = card.driver_mib * MIB - card.memory_bytes
    assert (kept == 0) == (card.cuda_bytes is None)
    assert 0 <= kept < GIB
    assert kept < 0.05 * card.memory_bytes


@pytest.mark.parametrize(
    ("name", "gib"),
    [
        ("rtx_3070", 8),
        ("rtx_3060", 12), ("rtx_4070", 12), ("rtx_4080", 16), ("rtx_a4000", 16), ("rtx_3090", 24),
        ("rtx_4090", 24), ("rtx_a5000", 24), ("l4", 24),
        ("rtx_5090", 32), ("a100_40", 40), ("rtx_a6000", 48), ("rtx_6000_ada", 48), ("l40s", 48),
        ("a40", 48), ("a100_80", 80), ("h100", 80),
        ("rtx_pro_6000", 96), ("h200", 141), ("b200", 180),
    ],
)  # fmt: skip
def test_a_card_has_the_memory_it_is_sold_with(name: str, gib: int) -> None:
    """Never more than is sold, and at most 9 % less: ECC on GDDR6 takes a sixteenth, the driver the rest."""
    assert 0.91 * gib < CARDS[name].memory_bytes / GIB <= gib * 1.001


def test_faster_cards_are_faster() -> None:
    for figure in ("bandwidth", "clock", "processors"):
        assert (
            getattr(CARDS["rtx_3060"], figure)
            < getattr(CARDS["rtx_4080"], figure)
            < getattr(CARDS["rtx_4090"], figure)
        )
    by_bandwidth = sorted(CARDS, key=lambda name: CARDS[name].bandwidth)
    assert by_bandwidth[0] == "l4"
    assert by_bandwidth[-6:] == ["rtx_pro_6000", "rtx_5090", "a100_80", "h100", "h200", "b200"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rtx_4090", "rtx_4090"), ("rtx4090", "rtx_4090"), ("RTX 4090", "rtx_4090"), ("4090", "rtx_4090"),
        ("NVIDIA GeForce RTX 4090", "rtx_4090"),
        ("GeForce RTX 4090 24GB", "rtx_4090"), ("NVIDIA GeForce RTX 3060", "rtx_3060"),
        ("rtx 3060 12 GB", "rtx_3060"), ("5090", "rtx_5090"),
        ("A6000", "rtx_a6000"), ("NVIDIA RTX A6000", "rtx_a6000"), ("NVIDIA RTX A4000", "rtx_a4000"),
        ("a5000", "rtx_a5000"),
        ("NVIDIA GeForce RTX 3070", "rtx_3070"), ("rtx 3070 8GB", "rtx_3070"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx_6000_ada"), ("6000 ada", "rtx_6000_ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx_pro_6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx_pro_6000"),
        ("pro 6000", "rtx_pro_6000"),
        ("NVIDIA L4", "l4"), ("l40s", "l40s"), ("NVIDIA A40", "a40"),
        ("a100-80", "a100_80"), ("A100 80GB", "a100_80"), ("NVIDIA A100-SXM4-80GB", "a100_80"),
        ("NVIDIA A100 80GB PCIe", "a100_80"),
        ("a100-40", "a100_40"), ("NVIDIA A100-PCIE-40GB", "a100_40"), ("Tesla A100 40 GB", "a100_40"),
        ("h100", "h100"), ("NVIDIA H100 80GB HBM3", "h100"), ("H100 SXM", "h100"), ("NVIDIA H200", "h200"),
        ("H200 141GB", "h200"), ("b200", "b200"),
    ],
)  # fmt: skip
def test_names_of_cards_are_read_as_people_write_them(written: str, name: str) -> None:
    assert find(written) == name


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_is_found_by_its_key_and_by_what_the_driver_calls_it(name: str) -> None:
    assert find(name) == find(CARDS[name].device) == name
    assert [key for key, card in CARDS.items() if re.fullmatch(card.spelling, name.replace("_", ""))] == [
        name
    ]


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("rtx_a600", "rtx_a6000"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "rtx_4090"),  # 16 GB, another chip
        ("RTX 4060 Ti", "rtx_4060_ti_16"),  # of 8 or of 16 GB
        ("RTX 3080 Laptop GPU", "rtx_3080"),
        ("RTX 3060 8GB", "rtx_3060"),
        ("RTX 4090 48GB", "rtx_4090"),
        ("A100", "a100_80"),
        ("RTX 6000", "rtx_6000_ada"),  # Turing's, Ada's or Blackwell's
        ("L41", "l4"),
        ("!", ""),
    ],
)
def test_another_card_is_refused_with_the_nearest_names(written: str, near: str) -> None:
    with pytest.raises(HarnessError) as caught:
        find(written)
    assert caught.value.code == "gpu-unknown"
    assert near in caught.value.fix
    assert all(name in (caught.value.need or "") for name in targets())


@pytest.mark.parametrize(
    ("written", "proposed"),
    [("rubin", []), ("cuda0", []), ("tpu v5e", []), ("!", [])],
)
def test_a_name_that_is_not_near_proposes_no_card(written: str, proposed: list[str]) -> None:
    with pytest.raises(HarnessError) as caught:
        find(written)
    assert re.findall(r"--gpu ([a-z0-9_]+)(?= or|$)", caught.value.fix) == proposed
    assert "Laptop" not in caught.value.what or not proposed


@pytest.mark.parametrize(
    ("written", "maker"),
    [
        *(
            (name, "AMD")
            for name in ("mi300x", "MI250", "AMD Instinct MI325X", "Radeon Pro W7900", "RX 7900")
        ),
        *((name, "Intel") for name in ("gaudi3", "Gaudi 2", "Arc A770", "Intel Arc B580")),
        *((name, "Intel") for name in ("max 1550", "Intel Data Center GPU Max 1550")),
    ],
)
@pytest.mark.parametrize("vram_bytes", [None, 80 * GIB])
def test_a_card_of_another_maker_has_no_plan(written: str, maker: str, vram_bytes: int | None) -> None:
    with pytest.raises(HarnessError) as caught:
        absent(written, vram_bytes, None)
    assert caught.value.code == "gpu-not-nvidia"
    assert f"{maker}'s" in caught.value.what
    assert "rtx_" not in caught.value.fix


def test_what_lies_in_host_memory_is_copied_asynchronously_and_a_piece_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of four arrays in host memory, updated together: pieces go back while others arrive, each array stays
    where it was, none is there twice.
    """
    monkeypatch.setattr(host, "_PIECE", 2**16)
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS["rtx_4090"].target(), topology="1x1x1"
    )
    place = NamedSharding(topologies.make_mesh(topology, (1,), ("fsdp",)), PartitionSpec())
    there = jax.ShapeDtypeStruct((8, 256, 256), "float32", sharding=host.in_host_memory(place))
    here = jax.ShapeDtypeStruct(there.shape, "float32", sharding=place)

    def update(state: host.Arrays, g: jax.Array) -> host.Arrays:
        def piece(moved: host.Arrays, read: host.Arrays) -> tuple[host.Arrays, jax.Array]:
            p, m, v, average = moved
            m, v = 0.9 * m + 0.1 * read[0], 0.95 * v + 0.05 * read[0] ** 2
            p = p - m / (jnp.sqrt(v) + 1e-8)
            return (p, m, v, 0.9 * average + 0.1 * p), jnp.zeros(())

        ((moved, _),) = host.stream([host.Job(piece, state, (g,), 3)])
        return moved

    traced = jax.jit(update, donate_argnums=0).trace((there,) * 4, here)
    compiled = traced.lower(lowering_platforms=("cuda",)).compile(compiler_options=ABSENT_GPU_OPTIONS)
    sizes, whole = compiled.memory_analysis(), 4 * 8 * 256 * 256
    assert (
        sizes.host_argument_size_in_bytes
        == sizes.host_output_size_in_bytes
        == sizes.host_alias_size_in_bytes
        == 4 * whole
    )
    assert sizes.host_temp_size_in_bytes == 0
    assert sizes.temp_size_in_bytes < 1.1 * whole
    loop = next(
        part for part in compiled.as_text().split("\n\n") if _COPY.search(part) and "ENTRY" not in part
    )
    under_way, both = {"slice": 0, "update-slice": 0}, 0
    for what, event in _COPY.findall(loop):
        under_way[what] += 1 if event == "start" else -1
        both += event == "start" and all(under_way.values())
    # A piece of each array arrives and goes back in a turn; of two and two of them at the same time.
    assert len(_COPY.findall(loop)) == 16
    assert set(under_way.values()) == {0}
    assert both >= 4
