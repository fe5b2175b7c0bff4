"""Tests that nothing is written outside the volumes, and that a key is in no layer, no file and no log.

Run after ci/smoke, which leaves such files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.container.engine import KEY, LABEL, SERVICES, Checkout, Engine, files_with, found

# Images are built here, and read to their last layer.
pytestmark = [pytest.mark.timeout(1800), pytest.mark.usefixtures("images")]


# In every place where a key may lie beside the code, one that no list knows too.
PLACES = (
    *(".env", ".env.local", "docker/.env", "harness/confinement.pem", "tests/.netrc", "docs/id_ed25519"),
    "a-key-of-mine",
)
# The engine makes the places that it mounts at; whatever else is there was written by us.
MOUNTED = re.compile(
    r"C /run|A /run/harness(/ca\.pem)?|C /usr|C /usr/s?bin|A /usr/s?bin/docker-init|C /s?bin"
    r"|A /s?bin/docker-init|[AC] /checkout(/harness|/docker)?"
)


@pytest.fixture(scope="module")
def key_file(scratch: Path) -> Path:
    path = scratch / "key"
    path.write_text(f"{KEY}\n")
    # The container's user need not be the one who runs the tests.
    scratch.chmod(0o755)
    path.chmod(0o644)
    return path


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


@pytest.fixture(scope="module")
def without_keys(engine: Engine) -> dict[str, set[str]]:
    """The layers of each image as ci/images has built it, before a key lay anywhere."""
    return {image: engine.layers(image) for image in SERVICES}


@pytest.mark.parametrize("image", SERVICES)
@pytest.mark.usefixtures("keys_beside_the_code")
def test_a_key_reaches_no_image(
    engine: Engine, checkout: Checkout, without_keys: dict[str, set[str]], image: str
) -> None:
    with engine.kept(image) as was:
        revision = was.labels["org.opencontainers.image.revision"]
        checkout.build(SERVICES[image], WANDB_API_KEY=KEY, HARNESS_REVISION=revision)
        built = engine.client.images.get(image)
        told = json.dumps([built.history(), built.attrs])
        assert "harness.lock.sha256" in told
        assert re.findall(rf"(?i){KEY}|api_key|hf_token", told) == []
        # A layer that was there before the key has the same content still, and gigabytes need not be read.
        assert engine.layers(image) <= without_keys[image] or not engine.holds(image, KEY)


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
