"""Tests plans for several machines: their shards, rows, memory, network, and when one machine is faster.

A formula stands in for the compiler; one tiny step is compiled for two machines that are not here.
"""

from __future__ import annotations

import pytest

from harness.artifacts import HostReport, Interface, Levers, Machine, Plan
from harness.errors import HarnessError
from harness.plan import cost, memory
from harness.plan.cards import CARDS
from harness.plan.cluster import ASSUMED, format_rate, net_of, one_host, rate
from harness.plan.place import absent, option_for
from harness.recipe.schema import Recipe
from harness.run.directory import sha256_json
from harness.show.plan import plan_view
from harness.units import GIB
from tests.support.planned import FULL, LORA, Formula, gpu, planned, with_gpus
from tests.support.tiny import tiny


def report(process: int, machine: Machine, *, name: str | None = None, **more: object) -> HostReport:
    return HostReport(
        process=process,
        name=name or f"node{process}",
        machine=machine,
        clock=0.0,
        source_sha256="",
        packages_sha256="",
        python="3.11",
        **{"devices": len(machine.gpus) or 1} | more,  # type: ignore[arg-type]
    )


def on_hosts(*machines: Machine, recipe: Recipe = FULL, **asked: object) -> Plan:
    hosts = tuple(report(number, machine) for number, machine in enumerate(machines))
    return planned(recipe, machines[0], hosts=hosts, **asked)


def of_two(recipe: Recipe, gpus: str = "h100:8x2", **asked: object) -> Levers:
    chosen = planned(recipe, gpu=gpus, host_ram_bytes=900 * GIB, slower=True, **asked).chosen
    assert chosen is not None
    return chosen.levers


def test_all_processes_share_the_batch_and_a_microbatch_divides_a_share() -> None:
    levers = of_two(FULL)
    assert (levers.devices, levers.hosts) == (16, 2)
    assert levers.microbatch * levers.accumulation_steps * 16 == FULL.train.global_batch


def test_shards_stay_inside_a_host_unless_they_do_not_fit_there() -> None:
    """On cards of 24 GiB the state in eight shards fits; on cards of 9 GiB it takes all sixteen."""
    fast = {"net": rate("400Gb"), "exact": True}
    inside = of_two(FULL, vram_bytes=24 * GIB, **fast)
    assert inside.fsdp == 8
    across = planned(FULL, gpu="h100:8x2", vram_bytes=9 * GIB, host_ram_bytes=32 * GIB, **fast)
    assert across.chosen is not None
    assert across.chosen.levers.fsdp == 16
    assert across.cluster is not None
    assert across.cluster.one_host_s is None, "one host would not hold shards of sixteen"
    assert any("one host would not hold" in note for note in across.notes)


def test_the_exchange_over_the_network_is_in_the_step_and_shrinks_with_its_rate() -> None:
    levers = of_two(FULL)
    slow, fast = (cost.exchange_seconds(FULL, levers, rate(text)) for text in ("100Gb", "400Gb"))
    assert slow == pytest.approx(4 * fast)
    card = CARDS["h100"]
    with_net = cost.seconds_per_step(FULL, levers, card, None, rate("100Gb"))
    assert with_net == pytest.approx(cost.seconds_per_step(FULL, levers, card, None) + slow)
    # Shards that lie on both hosts gather every layer over the network, too.
    across = levers.model_copy(update={"fsdp": 16})
    inside = levers.model_copy(update={"fsdp": 8})
    assert cost.exchange_seconds(FULL, across, ASSUMED) > cost.exchange_seconds(FULL, inside, ASSUMED)
    assert cost.exchange_seconds(FULL, one_host(levers), ASSUMED) == 0
    # The gradients go through each host's network twice: those of layers in bfloat16, the rest in float32.
    total, _ = memory.counted(FULL.model, FULL.train.trained)
    summed = cost.gradient_bytes(FULL.model, FULL.train.trained)
    assert 2 * total < summed < 3 * total
    moved = inside.accumulation_steps * 2 * summed * 15 / 16
    assert cost.exchange_seconds(FULL, inside, 1e9) == pytest.approx(moved / 0.8e9)


def test_a_network_that_makes_it_slower_than_one_host_is_refused_with_both_times() -> None:
    with pytest.raises(HarnessError) as caught:
        planned(FULL, gpu="h100:8x2", net=rate("1Gb"))
    error = caught.value
    assert error.code == "slower-than-one-host"
    assert "over 1 Gb/s" in str(error.got)
    assert "less than" in str(error.need)
    allowed = planned(FULL, gpu="h100:8x2", net=rate("1Gb"), slower=True)
    assert allowed.chosen is not None
    assert allowed.cluster is not None
    assert allowed.cluster.one_host_s is not None
    assert allowed.chosen.seconds_per_step is not None
    assert allowed.chosen.seconds_per_step > allowed.cluster.one_host_s
    fast = planned(FULL, gpu="h100:8x2", net=rate("800Gb"))
    assert fast.cluster is not None
    assert fast.cluster.net == "given"


def test_one_host_is_counted_with_as_many_rows_at_once_as_it_would_hold() -> None:
    """Two hosts of eight cards have 16 rows a card; one host has 32, at once where they fit."""
    roomy = planned(FULL, gpu="h100:8x2", net=rate("400Gb"), slower=True)
    tight = planned(FULL, gpu="h100:8x2", vram_bytes=14 * GIB, net=rate("400Gb"), slower=True, exact=True)
    for plan, times in ((roomy, 2), (tight, 1)):
        assert plan.chosen is not None
        assert plan.cluster is not None
        levers = one_host(plan.chosen.levers, times)
        assert levers.microbatch * levers.accumulation_steps * levers.devices == FULL.train.global_batch
        assert plan.cluster.one_host_s == cost.seconds_per_step(FULL, levers, CARDS["h100"], None)


def test_the_plan_says_which_rate_it_assumes() -> None:
    plan = planned(LORA, gpu="h100:8x2")
    assert plan.cluster is not None
    assert (plan.cluster.net, plan.cluster.net_bytes_per_s) == ("assumed", ASSUMED)
    assert any("100 Gb/s, assumed; --net RATE" in note for note in plan.notes)
    assert plan.device == "2 hosts of 8 x h100"
    assert option_for(plan.device) == "--gpu h100:8x2"
    assert option_for("4 hosts of gb10") == "--gpu gb10:1x4"
    assert plan_view(plan)


def test_machines_that_are_here_are_named_and_the_least_memory_counts() -> None:
    big = with_gpus(*(gpu(index) for index in range(4)), ram_available_bytes=256 * GIB)
    small = with_gpus(*(gpu(index, free=40) for index in range(4)), ram_available_bytes=128 * GIB)
    plan = on_hosts(big, small, recipe=LORA)
    assert plan.chosen is not None
    assert plan.cluster is not None
    assert (plan.chosen.levers.devices, plan.chosen.levers.hosts) == (8, 2)
    assert plan.cluster.names == ["node0", "node1"]
    assert plan.free_bytes == 40 * GIB
    assert plan.host_usable_bytes is not None
    assert plan.host_usable_bytes < 128 * GIB
    assert plan.cluster.device_uuids == [[f"GPU-{index}" for index in range(4)]] * 2
    assert plan.of_process(1).device_uuids == plan.cluster.device_uuids[1]
    assert plan.of_process(1).device_uuid == "GPU-0"


def test_of_each_machine_as_many_cards_are_used_as_the_smallest_has() -> None:
    plan = on_hosts(with_gpus(*(gpu(index) for index in range(4))), with_gpus(gpu(0), gpu(1)), recipe=LORA)
    assert plan.chosen is not None
    assert plan.chosen.levers.devices == 4
    assert any("node1 has no more" in note for note in plan.notes)


def test_unlike_cards_are_refused() -> None:
    other = with_gpus(gpu(0, name="NVIDIA GeForce RTX 4090", capability="8.9", total=24))
    with pytest.raises(HarnessError) as caught:
        on_hosts(with_gpus(gpu(0)), other, recipe=LORA)
    assert caught.value.code == "hosts-unlike"
    assert "node1: NVIDIA GeForce RTX 4090" in str(caught.value.got)


def test_a_machine_without_a_gpu_is_refused_like_one_alone() -> None:
    with pytest.raises(HarnessError) as caught:
        on_hosts(with_gpus(gpu(0)), with_gpus(), recipe=LORA)
    assert caught.value.code == "no-gpu"


def test_a_batch_that_no_number_of_devices_divides_over_the_hosts_is_refused() -> None:
    recipe = tiny("train.global_batch=9")
    with pytest.raises(HarnessError) as caught:
        planned(recipe, gpu="a40:2x2")
    assert caught.value.code == "hosts-cannot-share"
    assert "train.global_batch=12" in caught.value.fix
    some = planned(tiny("train.global_batch=6"), gpu="a40:2x2", slower=True)
    assert some.chosen is not None
    assert (some.chosen.levers.devices, some.chosen.levers.hosts) == (2, 2)
    assert any("2 of 4 devices" in note for note in some.notes)


def test_processes_of_one_machine_share_its_memory_and_have_no_network() -> None:
    machine = with_gpus(gpu(0), ram_available_bytes=64 * GIB)
    hosts = tuple(report(number, machine, name="node0") for number in range(2))
    plan = planned(LORA, machine, hosts=hosts)
    assert plan.cluster is not None
    assert (plan.cluster.net, plan.cluster.net_bytes_per_s) == ("within", None)
    assert plan.host_usable_bytes is not None
    assert plan.host_usable_bytes < 32 * GIB
    assert plan.device.startswith("2 processes of ")


def test_on_cpus_the_devices_of_all_processes_train() -> None:
    machine = Machine(gpu_error="none", host=with_gpus().host)
    hosts = tuple(report(number, machine, devices=2) for number in range(3))
    plan = planned(tiny("train.global_batch=12"), machine, hosts=hosts, device="cpu")
    assert plan.chosen is not None
    assert (plan.chosen.levers.devices, plan.chosen.levers.hosts) == (6, 3)
    assert plan.chosen.levers.platform == "cpu"


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        *[("100Gb", 100e9), ("25GbE", 25e9), ("400 Gbit/s", 400e9), ("200Gb/s", 200e9), ("1000Mb", 1e9)],
        *[("12.5GB/s", 100e9), ("3GB", 24e9), ("10Gbps", 10e9), ("1.6Tb", 1.6e12)],
    ],
)
def test_a_rate_is_read_as_it_is_written(text: str, bits: float) -> None:
    assert rate(text) == pytest.approx(bits / 8)


@pytest.mark.parametrize("text", ["", "fast", "100", "-1Gb", "0Gb", "nanGb", "1e400Gb", "100Gb/h", "Gb"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(HarnessError) as caught:
        rate(text)
    assert caught.value.code == "net-rate-invalid"


def test_the_slowest_machines_interfaces_say_the_rate_if_nobody_else_does() -> None:
    ports = [Interface(name=f"mlx5_{n}:1", kind="infiniband", bits_per_s=200 * 10**9) for n in range(2)]
    eth = [Interface(name="eth0", bits_per_s=25 * 10**9), Interface(name="eth1", bits_per_s=10**9)]
    machine = with_gpus(gpu(0))
    fast, slow = report(0, machine, interfaces=ports + eth), report(1, machine, interfaces=eth)
    assert net_of([fast, slow], None) == (25e9 / 8, "interface")
    assert net_of([fast, report(1, machine, interfaces=ports)], None) == (400e9 / 8, "interface")
    assert net_of([fast, report(1, machine)], None) == (ASSUMED, "assumed")
    assert net_of([fast, slow], 5e9) == (5e9, "given")
    assert format_rate(ASSUMED) == "100 Gb/s"


def test_each_machine_holds_and_writes_its_own_part() -> None:
    base = Levers(
        platform="cuda", devices=8, fsdp=8, microbatch=1, prompt_tokens=48, cameras=[], host=["ema"]
    )
    two = base.model_copy(update={"devices": 16, "hosts": 2})
    assert memory.pinned_bytes(FULL, two) == memory.pinned_bytes(FULL, base)
    across = two.model_copy(update={"fsdp": 16})
    assert memory.pinned_bytes(FULL, across) == memory.pinned_bytes(FULL, base) // 2
    saved = memory.host_bytes(FULL, base) - memory.host_bytes(FULL, two)
    assert saved == pytest.approx(memory.checkpoint_bytes(FULL) / 2, abs=1)


def test_what_is_written_of_one_machine_is_as_it_was_before_there_were_several() -> None:
    levers = Levers(platform="cuda", devices=2, microbatch=1, prompt_tokens=4, cameras=["a"])
    assert "hosts" not in levers.model_dump()
    assert "hosts" not in levers.model_dump_json()
    assert sha256_json(levers) == "4bc7a8d01aef5f32f1c70bb95c33f54f009304b68e20ad44843944fbf89c8f2e"
    plan = planned(LORA, gpu="h100:8")
    assert plan.cluster is None
    assert "cluster" not in plan.model_dump(mode="json")
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    two = planned(LORA, gpu="h100:8x2")
    assert Plan.model_validate_json(two.model_dump_json()) == two


@pytest.mark.parametrize("count", ["0x2", "2x0", "2x", "x2", "2x2x2", "2X2"])
def test_a_count_of_hosts_is_a_number_from_one(count: str) -> None:
    with pytest.raises(HarnessError) as caught:
        planned(LORA, gpu=f"a40:{count}")
    assert caught.value.code == "gpu-count-invalid"


def test_several_machines_are_refused_where_the_plan_is_for_one() -> None:
    with pytest.raises(HarnessError) as caught:
        absent("a40:2x2", None, None)
    assert caught.value.code == "gpu-count-invalid"
    assert "a40:2" in caught.value.fix


def test_a_cluster_asks_the_compiler_for_machines_that_are_not_here() -> None:
    """Even for cards of this machine: it has only its own."""
    formula = Formula()
    machines = [with_gpus(gpu(0)), with_gpus(gpu(0))]
    hosts = tuple(report(number, machine) for number, machine in enumerate(machines))
    planned(LORA, machines[0], formula, hosts=hosts, slower=True)
    assert formula.asked
    assert all(request.target is not None for request in formula.asked)
    assert {request.levers.hosts for request in formula.asked} == {2}
