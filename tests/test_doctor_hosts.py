"""Tests the checks of the machines of one run: each finding names the machine, with what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import Cluster, HostReport, Interface, Machine, Plan
from harness.artifacts.doctor import Finding
from harness.doctor import examine
from harness.doctor.examine import HOSTS, Check
from harness.doctor.situation import Situation
from harness.errors import HarnessError
from harness.probe.member import cpu_devices, interfaces, own_gpus, proxies_before
from tests.support.planned import plan_of, with_gpus
from tests.support.situations import CARD, FITS, HOST

GPUS = [CARD.model_copy(update={"index": index, "uuid": f"GPU-{index}"}) for index in range(2)]


def host(process: int, **changes: Any) -> HostReport:
    machine = Machine(gpus=GPUS, host=HOST, driver_version=changes.pop("driver", "570.86"))
    body = {
        "process": process,
        "name": f"node{process}",
        "machine": machine,
        "devices": 2,
        "clock": 1000.0 + process / 100,
        "source_sha256": "c0de",
        "packages_sha256": "pack",
        "python": "3.11.7",
        "interfaces": [Interface(name="eth0", bits_per_s=10**11)],
    }
    return HostReport(**(body | changes))


def planned(devices: int = 2, platform: str = "cuda") -> Plan:
    levers = FITS.levers.model_copy(update={"devices": 2 * devices, "hosts": 2, "platform": platform})
    plan = plan_of(FITS.model_copy(update={"levers": levers}), "2 hosts")
    return plan.model_copy(update={"cluster": Cluster(devices_per_host=devices)})


def found(*hosts: HostReport, checks: tuple[Check, ...] = (), **changes: Any) -> dict[str, Finding]:
    """The findings about these machines, by check; the last one of each."""
    from tests.support.planned import LORA

    situation = Situation(
        recipe=LORA,
        machine=hosts[0].machine,
        environ={},
        **{"plan": planned(), "hosts": hosts, "coordinator": "node0"} | changes,
    )
    return {one.check: one for one in examine.examine(situation, checks=checks).findings}


def test_machines_that_are_alike_pass_every_check() -> None:
    assert found(host(0), host(1)) == {}


def test_a_run_of_one_process_is_not_asked_about_hosts() -> None:
    situation = Situation(recipe=with_recipe(), machine=with_gpus(), environ={})
    diagnosis = examine.examine(situation, checks=())
    assert not {check.name for check in HOSTS} & {*diagnosis.passed, *diagnosis.not_needed}


def with_recipe() -> Any:
    from tests.support.planned import LORA

    return LORA


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"image_digest": "sha256:ffff"}, "image ffff"),
        ({"lock_sha256": "beef"}, "lock of packages beef"),
        ({"source_sha256": "beef"}, "code of the harness beef"),
        ({"packages_sha256": "beef"}, "installed packages beef"),
        ({"python": "3.12.1"}, "Python 3.12.1"),
    ],
)
def test_other_software_is_an_error_that_names_the_machine(changes: dict[str, str], what: str) -> None:
    one = found(host(0), host(1), host(2, **changes))["software of hosts"]
    assert one.severity == "error"
    assert one.got.startswith(f"node2 (process 2): {what}; node0")
    assert one.fix.startswith("on node2: ")


def test_another_image_is_mended_by_the_first_ones() -> None:
    first = host(0, image="registry/harness@sha256:11", image_digest="sha256:11")
    one = found(first, host(1, image_digest="sha256:22"))["software of hosts"]
    assert "registry/harness@sha256:11" in one.fix


def test_another_driver_is_an_error() -> None:
    one = found(host(0), host(1, driver="535.1"))["driver of hosts"]
    assert (one.severity, "535.1" in one.got, "570.86" in one.fix) == ("error", True, True)


def test_fewer_devices_than_planned_are_an_error_and_idle_ones_a_warning() -> None:
    few = found(host(0), host(1, devices=1))["devices of hosts"]
    assert (few.severity, few.need) == ("error", "2 on every host")
    assert few.got == "node1 (process 1): 1 GPUs, of which the plan takes 1"
    idle = found(host(0, devices=8), host(1))["devices of hosts"]
    assert (idle.severity, idle.got) == ("warning", "node0 (process 0): 8 GPUs, of which the plan takes 2")


def test_data_that_is_not_there_or_is_other_data_is_copied_by_the_fix() -> None:
    one = found(host(0), host(1, data="/data/my set is not there"))["data of hosts"]
    assert one.severity == "error"
    assert "node1 (process 1): /data/my set is not there" in one.got
    assert "rsync -a " in one.fix


def test_clocks_that_are_apart_are_a_warning() -> None:
    assert found(host(0), host(1, clock=1003.0)) == {}
    one = found(host(0), host(1, clock=940.0))["clocks of hosts"]
    assert (one.severity, one.got) == ("warning", "node1 (process 1): its clock is 60 s behind")


def test_a_proxy_before_the_coordinator_is_an_error() -> None:
    one = found(host(0), host(1, proxies=["https_proxy"]))["proxies of hosts"]
    assert one.severity == "error"
    assert "no_proxy=node0" in one.fix
    assert "unset https_proxy" in one.fix


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"https_proxy": "http://p:1"}, ["https_proxy"]),
        ({"HTTP_PROXY": "http://p:1", "no_proxy": "other"}, ["HTTP_PROXY"]),
        ({"http_proxy": "http://p:1", "no_proxy": "localhost, node0"}, []),
        ({"http_proxy": "http://p:1", "NO_PROXY": ".cluster"}, ["http_proxy"]),
        ({"http_proxy": "http://p:1", "no_proxy": "*"}, []),
        ({"http_proxy": ""}, []),
    ],
)
def test_only_a_proxy_that_applies_to_the_coordinator_counts(
    environ: dict[str, str], seen: list[str]
) -> None:
    assert proxies_before("node0", environ) == seen
    assert proxies_before("node0.cluster", {"http_proxy": "x", "no_proxy": ".cluster"}) == []


TWO = [Interface(name="eth0", bits_per_s=10**9), Interface(name="ens1", bits_per_s=10**11)]


def test_which_of_several_interfaces_is_asked_and_the_fastest_common_one_is_named() -> None:
    one = found(host(0, interfaces=TWO), host(1, interfaces=[*TWO, Interface(name="docker0")]))
    finding = one["network interface"]
    assert (finding.severity, finding.fix) == ("warning", "NCCL_SOCKET_IFNAME=ens1 in every process")
    assert "docker0" not in finding.got
    said = {"variables": {"NCCL_SOCKET_IFNAME": "ens1"}}
    assert found(host(0, interfaces=TWO, **said), host(1, interfaces=TWO, **said)) == {}


@pytest.mark.parametrize(
    ("chosen", "means"), [("eth", True), ("=eth", False), ("^docker,ens", True), ("ib0", False)]
)
def test_the_named_interface_must_be_there_as_nccl_reads_its_name(chosen: str, means: bool) -> None:
    one = found(host(0), host(1, variables={"NCCL_SOCKET_IFNAME": chosen}))
    assert ("network interface" not in one) == means
    if not means:
        assert one["network interface"].severity == "error"
        assert one["network interface"].got.startswith("node1 (process 1): ")


def test_interfaces_matter_only_to_gpus_of_several_machines() -> None:
    same = [host(number, interfaces=TWO, name="node0") for number in range(2)]
    assert found(*same) == {}
    assert found(host(0, interfaces=TWO), host(1), plan=planned(platform="cpu"), device="cpu") == {}


def test_a_run_that_one_machine_would_train_faster_is_an_error_that_can_be_allowed() -> None:
    slower = HarnessError(
        "slower-than-one-host", "2 hosts would be slower", got="3 s", need="2 s", fix="--net RATE"
    )
    one = found(host(0), host(1), slower=slower)["one host"]
    assert (one.severity, one.got, one.need) == ("error", "2 hosts would be slower: 3 s", "2 s")
    situation = Situation(
        recipe=with_recipe(), machine=with_gpus(), environ={}, hosts=(host(0), host(1)), slower=slower
    )
    assert not examine.examine(situation, checks=(), allow=["one host"]).errors


def test_a_process_counts_the_devices_that_it_would_use() -> None:
    assert cpu_devices({}) == 1
    assert cpu_devices({"JAX_NUM_CPU_DEVICES": "3"}) == 3
    assert cpu_devices({"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=4"}) == 4
    machine = with_gpus(*GPUS, CARD.model_copy(update={"index": 2, "visible": False}))
    assert [gpu.index for gpu in own_gpus(machine, None)] == [0, 1]
    assert [gpu.index for gpu in own_gpus(machine, (1,))] == [1]


def test_interfaces_and_their_rates_are_read_from_sysfs(tmp_path: Path) -> None:
    files = {
        "sys/class/net/lo/operstate": "unknown",
        "sys/class/net/eth0/operstate": "up",
        "sys/class/net/eth0/speed": "25000",
        "sys/class/net/eth1/operstate": "up",
        "sys/class/net/eth1/speed": "-1",
        "sys/class/net/eth2/operstate": "down",
        "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
        "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
        "sys/class/infiniband/mlx5_1/ports/1/state": "1: DOWN",
        "sys/class/infiniband/mlx5_1/ports/1/rate": "10 Gb/sec (4X)",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert interfaces(tmp_path) == [
        Interface(name="eth0", bits_per_s=25 * 10**9),
        Interface(name="eth1"),
        Interface(name="mlx5_0:1", kind="infiniband", bits_per_s=400 * 10**9),
    ]
    assert interfaces(tmp_path / "nothing") == []
