"""Tests the confinement of compose.yaml's containers, and the files that they left.

Covered are capabilities, root filesystem, limits, networks, keys and owners. Run after ci/smoke, which leaves
such files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.models.containers import Container

from tests.container.engine import LABEL, Checkout, Ended, Engine, files_with, found, of_others

# Images are built here, and read to their last layer.
pytestmark = pytest.mark.timeout(1800)

# Put together when it is needed, since this file is itself in the test image.
KEY = "".join([*["0123456789abcdef"] * 2, "0123fake"])
# In every place where a key may lie beside the code, one that no list knows too.
PLACES = (
    *(".env", ".env.local", "docker/.env", "harness/confinement.pem", "tests/.netrc", "docs/id_ed25519"),
    "a-key-of-mine",
)
# Image → the service that it is built for.
SERVICES = {"harness:cpu": "smoke", "harness:test": "test", "harness:cuda": "train"}
# The engine makes the places that it mounts at; whatever else is there was written by us.
MOUNTED = re.compile(
    r"C /run|A /run/harness(/ca\.pem)?|C /usr|C /usr/s?bin|A /usr/s?bin/docker-init|C /s?bin"
    r"|A /s?bin/docker-init|[AC] /checkout(/harness|/docker)?"
)
STRANGER = 31415


@pytest.fixture(scope="module", autouse=True)
def _images(engine: Engine) -> None:
    for image in SERVICES:
        engine.image(image)


# --- what a process inside may do, and what it may use up

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


# --- nothing is written outside the volumes, and a key is in no layer, no file and no log


@pytest.fixture(scope="module")
def place(checkout: Checkout) -> Iterator[str]:
    """A directory of this checkout's runs, as the containers see it."""
    path = checkout.root / "runs" / f"{checkout.engine.session}-confinement"
    path.mkdir()
    try:
        yield f"/runs/{path.name}"
    finally:
        # A container that was interrupted would go on writing there.
        checkout.engine.clean()
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def key_file(scratch: Path) -> Path:
    path = scratch / "key"
    path.write_text(f"{KEY}\n")
    # The container's user need not be the one who runs the tests.
    scratch.chmod(0o755)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def probed(checkout: Checkout, place: str) -> Container:
    """A container of smoke that has run to its end, where a key stood in the environment."""
    ended, container = checkout.keep("probe", "smoke", "probe", "--run", place, WANDB_API_KEY=KEY)
    assert ended.code == 0, ended.said
    return container


@pytest.fixture(scope="module")
def fetched(checkout: Checkout, place: str, key_file: Path) -> Container:
    """A container of fetch that has run to its end and was given a key as a file."""
    told = {"HF_TOKEN_FILE": str(key_file)}
    ended, container = checkout.keep("fetch", "fetch", "probe", "--run", place, **told)
    assert ended.code == 0, ended.said
    return container


@pytest.fixture
def keys_beside_the_code(checkout: Checkout) -> Iterator[None]:
    """A key in every place that is free; nobody's own file is written over."""
    free = [path for name in PLACES if not os.path.lexists(path := checkout.root / name)]
    try:
        for path in free:
            path.write_text(f"WANDB_API_KEY={KEY}\n")
        yield
    finally:
        for path in free:
            path.unlink(missing_ok=True)


def test_a_run_writes_nothing_outside_the_volumes(engine: Engine, probed: Container) -> None:
    assert [line for line in engine.changes(probed) if not MOUNTED.fullmatch(line)] == []


def test_what_is_written_outside_the_volumes_would_be_seen(engine: Engine) -> None:
    container = engine.client.containers.create(
        "harness:cpu", entrypoint=["touch"], command=["/tmp/written"], labels={LABEL: engine.session}
    )
    container.start()
    container.wait()
    assert "A /tmp/written" in engine.changes(container)


def given(checkout: Checkout, context: str, name: str) -> str:
    """An image of all that a build is given from a directory; the client applies .dockerignore."""
    tag = f"{checkout.engine.session}:{name}"
    take_all = "FROM scratch\nCOPY . /x\n"
    checkout.done("docker", "build", "--quiet", "--tag", tag, "--file", "-", context, given=take_all)
    return tag


def test_a_key_that_is_in_a_layer_would_be_found(engine: Engine, checkout: Checkout, scratch: Path) -> None:
    bare = scratch / "bare"
    bare.mkdir()
    (bare / ".env").write_text(f"WANDB_API_KEY={KEY}\n")
    assert engine.holds(given(checkout, str(bare), "bare"), KEY)


def test_a_key_is_found_across_two_pieces_of_a_stream() -> None:
    text = f"…{KEY}…".encode()
    for cut in range(len(text)):
        assert found([text[:cut], text[cut:]], KEY.encode())
    assert found((bytes([byte]) for byte in text), KEY.encode())
    assert not found([text[:20], text[21:]], KEY.encode())


@pytest.mark.usefixtures("keys_beside_the_code")
def test_a_key_beside_the_code_is_not_in_what_a_build_is_given(engine: Engine, checkout: Checkout) -> None:
    image = given(checkout, ".", "context")
    assert engine.holds(image, "create_host_path: false"), "the code is not there either"
    assert not engine.holds(image, KEY)


@pytest.mark.parametrize("image", SERVICES)
@pytest.mark.usefixtures("keys_beside_the_code")
def test_a_key_reaches_no_image(engine: Engine, checkout: Checkout, image: str) -> None:
    checkout.build(SERVICES[image], WANDB_API_KEY=KEY)
    built = engine.client.images.get(image)
    told = json.dumps([built.history(), built.attrs])
    assert "harness.lock.sha256" in told
    assert re.findall(rf"(?i){KEY}|api_key|hf_token", told) == []
    assert not engine.holds(image, KEY)


def test_a_key_that_is_a_file_reaches_the_container(checkout: Checkout, key_file: Path) -> None:
    told = {"HF_TOKEN_FILE": str(key_file)}
    ended = checkout.run("fetch", "/run/secrets/hf_token", entrypoint="cat", **told)
    assert (ended.code, ended.out) == (0, f"{KEY}\n"), ended.err


def test_a_key_that_is_a_file_is_not_in_the_settings_of_its_container(
    engine: Engine, fetched: Container
) -> None:
    told = json.dumps(engine.client.api.inspect_container(fetched.id))
    assert "/run/secrets/hf_token" in told
    assert KEY not in told


@pytest.mark.usefixtures("probed", "fetched")
def test_a_key_is_written_to_no_run_and_no_cache(checkout: Checkout, key_file: Path) -> None:
    assert key_file in files_with(KEY, key_file.parent)
    assert files_with(KEY, checkout.root / "runs", checkout.root / "cache") == []


@pytest.mark.usefixtures("probed", "fetched")
def test_a_key_is_in_no_log_of_a_container(probed: Container, fetched: Container) -> None:
    for container in (probed, fetched):
        assert (said := container.logs())
        assert KEY.encode() not in said


# --- whose the files are


@pytest.mark.usefixtures("probed")
def test_all_that_was_written_belongs_to_the_owner_of_the_checkout(checkout: Checkout) -> None:
    roots = [checkout.root / name for name in ("runs", "cache", "datasets")]
    assert of_others(os.getuid(), *roots) == []
    # Nothing there is nobody's: to another user all of it would be another's.
    assert len(of_others(os.getuid() + 1, *roots)) > len(roots)


@pytest.fixture(scope="module")
def her(engine: Engine, checkout: Checkout) -> Iterator[Checkout]:
    """A clone and an image of somebody who is not root; afterwards the image is the owner's again."""
    if os.getuid() != 0:
        pytest.skip("only root can become another person")
    home = Path(tempfile.mkdtemp(prefix="harness-tests-"))
    try:
        checkout.done("git", "clone", "--quiet", "--no-hardlinks", ".", str(home / "clone"))
        if (settings := Path.home() / ".docker").is_dir():
            shutil.copytree(settings, home / ".docker", symlinks=True)
        os.chown(home, STRANGER, STRANGER)
        for place, directories, files in os.walk(home):
            for name in (*directories, *files):
                os.chown(Path(place, name), STRANGER, STRANGER, follow_symlinks=False)
        who: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        if engine.address.startswith("unix://"):
            who["extra_groups"] = [os.stat(engine.address.removeprefix("unix://")).st_gid]
        owner = Checkout(engine, home / "clone", env={"HOME": str(home)}, **who)
        # So that the index says whose the files are now, as in a clone that she made.
        owner.done("git", "status", "--short")
        owner.build("smoke")
        yield owner
    finally:
        try:
            shutil.rmtree(home)
        finally:
            checkout.build("smoke")


def test_somebody_else_gets_her_own_files(her: Checkout) -> None:
    her.done("mkdir", "runs/probe")
    ended = her.run("smoke", "probe", "--run", "/runs/probe")
    assert ended.code == 0, ended.said
    assert (her.root / "runs" / "probe" / "machine.json").stat().st_size > 0
    assert of_others(STRANGER, her.root / "runs", her.root / "cache") == []


def test_a_user_who_cannot_write_is_refused_with_the_fix(her: Checkout) -> None:
    other: dict[str, str] = {"HARNESS_UID": "4242", "HARNESS_GID": "4242"}
    ended: Ended = her.run("smoke", "train", **other)
    assert ended.code == 2, ended.said
    assert "HARNESS_UID=" in ended.said


# --- a GPU service without the NVIDIA toolkit


def test_training_without_the_nvidia_toolkit_is_refused_by_the_engine(
    engine: Engine, checkout: Checkout
) -> None:
    if "nvidia" in engine.client.info()["Runtimes"]:
        pytest.skip("this engine has the NVIDIA toolkit")
    ended = checkout.run("train", "probe")
    assert ended.code != 0
    assert "could not select device driver" in ended.said
