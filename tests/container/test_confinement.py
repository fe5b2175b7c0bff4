"""Tests what a process in a container of compose.yaml may do, and what it may use up.

Covered are capabilities, root filesystem, limits and networks.
"""

from __future__ import annotations

import json
import re

import pytest
from docker.models.containers import Container

from tests.container.engine import SERVICES, Checkout, Engine

# Images are built here, and read to their last layer.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("images")]


LOOK = """
echo "== status"; grep -E "^(Cap|NoNewPrivs)" /proc/self/status
echo "== root"; touch /refused 2>&1
echo "== networks"; ls /sys/class/net
echo "== processes"; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null
echo "== memory"; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null
echo "== first"; cat /proc/self/oom_score_adj
"""
FORKS = "i=0; while [ $i -lt 200 ]; do sleep 3 & i=$((i + 1)); done; echo all 200"
# Without a shell in between, so that the exit code is that of the process which asked for too much.
ALLOCATES = "exec python -c 'b\"x\" * 2**30'"


@pytest.fixture(scope="module")
def smoke(checkout: Checkout) -> tuple[dict[str, list[str]], Container]:
    """What a process in smoke sees, topic by topic, and its container."""
    ended, container = checkout.keep("look", "smoke", "-c", LOOK, entrypoint="sh")
    topics = [part.splitlines() for part in ended.out.split("== ")[1:]]
    return {name: lines for name, *lines in topics}, container


def test_a_process_has_no_capability(smoke: tuple[dict[str, list[str]], Container]) -> None:
    capabilities = [line for line in smoke[0]["status"] if line.startswith("Cap")]
    none = [line for line in capabilities if re.fullmatch(r"Cap(Inh|Prm|Eff|Bnd|Amb):\s0+", line)]
    assert len(none) == 5
    assert none == capabilities


def test_a_process_can_get_no_new_privileges(smoke: tuple[dict[str, list[str]], Container]) -> None:
    assert "NoNewPrivs:\t1" in smoke[0]["status"]


def test_the_root_filesystem_cannot_be_written(smoke: tuple[dict[str, list[str]], Container]) -> None:
    assert "Read-only file system" in "\n".join(smoke[0]["root"])


def test_smoke_has_no_network(smoke: tuple[dict[str, list[str]], Container]) -> None:
    assert smoke[0]["networks"] == ["lo"]


def test_smoke_is_limited_to_8192_processes(smoke: tuple[dict[str, list[str]], Container]) -> None:
    assert smoke[0]["processes"] == ["8192"]


def test_smoke_is_limited_to_8_gib(smoke: tuple[dict[str, list[str]], Container]) -> None:
    assert smoke[0]["memory"] == [str(8 << 30)]


def test_the_kernel_ends_a_container_before_the_rest_of_the_machine(
    smoke: tuple[dict[str, list[str]], Container],
) -> None:
    assert smoke[0]["first"] == ["500"]


def test_the_engine_was_told_what_the_process_sees(smoke: tuple[dict[str, list[str]], Container]) -> None:
    told = smoke[1].attrs["HostConfig"]
    assert told["CapDrop"] == ["ALL"]
    assert not told["CapAdd"]
    assert not told["Privileged"]
    assert "no-new-privileges:true" in told["SecurityOpt"]
    assert told["ReadonlyRootfs"] is True
    assert told["NetworkMode"] == "none"
    assert (told["PidsLimit"], told["Memory"], told["OomScoreAdj"]) == (8192, 8 << 30, 500)


@pytest.mark.parametrize("image", SERVICES)
def test_an_image_is_not_root_by_default(engine: Engine, image: str) -> None:
    ended = engine.run(image, "id", "-u")
    assert ended.code == 0, ended.said
    assert int(ended.out) > 0


def test_200_processes_start_where_8192_may_be(checkout: Checkout) -> None:
    ended = checkout.run("smoke", "-c", FORKS, entrypoint="sh")
    assert (ended.code, ended.out) == (0, "all 200\n"), ended.said


def test_200_processes_do_not_start_where_64_may_be(checkout: Checkout) -> None:
    ended = checkout.run("smoke", "-c", FORKS, entrypoint="sh", HARNESS_PIDS="64")
    assert ended.code != 0
    assert "all 200" not in ended.said
    assert "fork" in ended.said, ended.said


def test_1_gib_is_allocated_where_8_gib_may_be(checkout: Checkout) -> None:
    ended = checkout.run("smoke", "-c", ALLOCATES, entrypoint="sh")
    assert ended.code == 0, ended.said


def test_1_gib_is_not_allocated_where_128_mib_may_be(checkout: Checkout) -> None:
    ended = checkout.run("smoke", "-c", ALLOCATES, entrypoint="sh", HARNESS_MEMORY="128m")
    assert ended.code == 137, ended.said


def test_docker_limits_says_how_much_this_machine_has(checkout: Checkout) -> None:
    assert re.fullmatch(r"HARNESS_MEMORY=[0-9]+m\n", checkout.done("docker/limits"))


# --- a network only where something is fetched, and none where it is taken away


def test_fetch_has_a_network(checkout: Checkout) -> None:
    assert "eth0" in checkout.run("fetch", "/sys/class/net", entrypoint="ls").out.split()


@pytest.mark.parametrize("service", ["train", "train-openpi"])
@pytest.mark.parametrize(
    ("chosen", "network"), [({}, "bridge"), ({"HARNESS_NETWORK": "none"}, "none")], ids=["bridge", "none"]
)
def test_training_has_a_network_until_it_is_taken_away(
    checkout: Checkout, service: str, chosen: dict[str, str], network: str
) -> None:
    told = checkout.done("docker", "compose", "config", "--format", "json", service, **chosen)
    assert json.loads(told)["services"][service]["network_mode"] == network


# --- a GPU service without the NVIDIA toolkit


def test_training_without_the_nvidia_toolkit_is_refused_by_the_engine(
    engine: Engine, checkout: Checkout
) -> None:
    if "nvidia" in engine.client.info()["Runtimes"]:
        pytest.skip("this engine has the NVIDIA toolkit")
    ended = checkout.run("train", "probe")
    assert ended.code != 0
    assert "could not select device driver" in ended.said
