"""Fixtures for container tests: one engine per session, and cleanup after every test.

What was made in the engine is removed whether a test passes, fails or is interrupted. These tests run only if
a path names them (`ci/local test tests/container`), because the ordinary tests run in a container, which has
no engine. If they are named, they fail where the engine or an image is missing.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.models.containers import Container

from tests.container.engine import KEY, ROOT, SERVICES, Checkout, Engine


@pytest.fixture(scope="session", autouse=True)
def _ended_like_ctrl_c() -> Iterator[None]:
    """A batch system's SIGTERM ends the tests as Ctrl-C does, so that their fixtures clean up."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    made = Engine()
    try:
        yield made
    finally:
        made.clean()


@pytest.fixture(scope="session")
def checkout(engine: Engine) -> Checkout:
    """This checkout, and its owner."""
    return Checkout(engine, ROOT)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A directory of the host, that is removed with all that containers wrote there."""
    with tempfile.TemporaryDirectory(prefix="harness-tests-") as path:
        yield Path(path)


@pytest.fixture(scope="module")
def images(engine: Engine) -> None:
    """Fails each test that asks for them where an image of compose.yaml is missing."""
    for image in SERVICES:
        engine.image(image)


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
def probed(checkout: Checkout, place: str) -> Container:
    """A container of smoke that has run to its end, where a key stood in the environment."""
    ended, container = checkout.keep("probe", "smoke", "probe", "--run", place, WANDB_API_KEY=KEY)
    assert ended.code == 0, ended.said
    return container
