"""Helpers for container tests.

They are: the engine through its SDK, `docker compose` as the owner of a checkout calls it, and the search for
a key in the contents of an image or in the files of a run.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import docker
import pytest
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.models.images import Image

from tests.conftest import OUTSIDE

ROOT = Path(__file__).parents[2]
# The engine writes an image of many gigabytes to its disk before it sends the first byte.
PATIENCE_S = 1800
# The image that runs on any machine, or another to be tried in its place. compose.yaml has its own names.
CPU_IMAGE = OUTSIDE.get("HARNESS_TEST_IMAGE") or "harness:cpu"
LABEL = "harness.tests"
# Nothing, or 13 (compose.yaml).
CUDA_VERSION = OUTSIDE.get("HARNESS_CUDA", "")
CUDA_IMAGE = f"harness:cuda{CUDA_VERSION}"
# Image → the service that it is built for.
SERVICES = {"harness:cpu": "smoke", "harness:test": "test", CUDA_IMAGE: "train"}
# Put together when it is needed, since this file is itself in the test image.
KEY = "".join([*["0123456789abcdef"] * 2, "0123fake"])
# What trains in a container for a test compiles quickly, as other tests do (tests/conftest.py).
FAST = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}
# What the engine's listing of changes calls them in numbers.
_KINDS = {0: "C", 1: "A", 2: "D"}


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it wrote to both of its streams."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def outside() -> dict[str, str]:
    """The environment that a person's command has: this process's, without what its start has set.

    HARNESS_REVISION is set by ci/local too, and would give an image another label.
    """
    ours = ("HARNESS_REVISION", "HARNESS_LOCK_SHA256", "JAX_PLATFORMS")
    return {name: value for name, value in OUTSIDE.items() if name not in ours}


class Engine:
    """The engine that the `docker` command talks to.

    Whatever a session starts carries the label LABEL=session, and whatever it tags is named for the session;
    `clean` removes both.
    """

    def __init__(self) -> None:
        self.session = f"harness-tests-{os.getpid()}-{secrets.token_hex(3)}"
        try:
            # The command may be told its engine by a context, which the SDK does not read.
            told = subprocess.run(
                ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"],
                capture_output=True,
                text=True,
                check=True,
                env=outside(),
            )
            self.address = told.stdout.strip()
            self.client = docker.from_env(
                timeout=PATIENCE_S, environment=outside() | {"DOCKER_HOST": self.address}
            )
            self.client.ping()
        except (OSError, subprocess.CalledProcessError, DockerException) as error:
            pytest.fail(f"no container engine answers: {error}", pytrace=False)

    def image(self, name: str) -> str:
        """The same name; fails where there is no such image."""
        try:
            self.client.images.get(name)
        except ImageNotFound:
            pytest.fail(f"there is no image {name}: ci/images builds it", pytrace=False)
        return name

    def run(self, image: str, *command: str, **settings: Any) -> Ended:
        """Runs a command in place of the image's own start; the container is removed."""
        container = self.client.containers.create(
            image,
            entrypoint=[command[0]],
            command=[*command[1:]],
            labels={LABEL: self.session},
            **settings,
        )
        try:
            container.start()
            code = container.wait(timeout=PATIENCE_S)["StatusCode"]
            out, err = (
                container.logs(stdout=first, stderr=not first).decode(errors="replace")
                for first in (True, False)
            )
            return Ended(code, out, err)
        finally:
            remove(container)

    def changes(self, container: Container) -> list[str]:
        """What a container has changed outside its volumes, a line each, as `docker diff` prints them."""
        return [f"{_KINDS[entry['Kind']]} {entry['Path']}" for entry in container.diff() or []]

    def layers(self, image: str) -> set[str]:
        """The sha256 of the content of each layer."""
        return set(self.client.images.get(image).attrs["RootFS"]["Layers"])

    @contextmanager
    def kept(self, image: str) -> Iterator[Image]:
        """The image of this name, which has the name again afterwards, whatever was built meanwhile."""
        was = self.client.images.get(image)
        try:
            yield was
        finally:
            was.tag(*image.rsplit(":", 1))

    def holds(self, image: str, text: str) -> bool:
        """Whether the text is in the image, layer by layer, as it would be pushed."""
        return found(self.client.images.get(image).save(), text.encode())

    def clean(self) -> None:
        """Removes the containers and images of this session."""
        for container in self.client.containers.list(
            all=True, filters={"label": f"{LABEL}={self.session}"}, ignore_removed=True
        ):
            remove(container)
        for image in self.client.images.list(name=self.session):
            self.client.images.remove(image.id, force=True)


class Checkout:
    """`docker compose` in a checkout, called as its owner calls it: `who` goes to subprocess."""

    def __init__(self, engine: Engine, root: Path, **who: Any) -> None:
        self.engine, self.root, self._who = engine, root, who

    def command(self, *command: str, given: str = "", **variables: str) -> Ended:
        """Runs a command; `given` is its standard input and `variables` join its environment."""
        who = {**self._who}
        env = outside() | who.pop("env", {}) | variables
        done = subprocess.run(
            command,
            cwd=self.root,
            env=env,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            **who,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def done(self, *command: str, **how: str) -> str:
        """What a command wrote to its output; fails when it failed."""
        ended = self.command(*command, **how)
        assert ended.code == 0, f"{' '.join(command)}: exit code {ended.code}\n{ended.said}"
        return ended.out

    def build(self, service: str, **variables: str) -> None:
        self.done("docker", "compose", "--progress", "quiet", "build", service, **variables)

    def run(
        self,
        service: str,
        *command: str,
        entrypoint: str | None = None,
        options: Sequence[str] = ("--rm",),
        **variables: str,
    ) -> Ended:
        """Runs a service; `entrypoint` is a program in place of the image's own start."""
        start = ["--entrypoint", entrypoint] if entrypoint else []
        label = f"{LABEL}={self.engine.session}"
        return self.command(
            *("docker", "compose", "run", "--label", label),
            *options,
            *start,
            service,
            *command,
            **variables,
        )

    def keep(self, name: str, service: str, *command: str, **how: Any) -> tuple[Ended, Container]:
        """As `run`, and the container that is left, for whoever inspects it."""
        full = f"{self.engine.session}-{name}"
        ended = self.run(service, *command, options=("--name", full), **how)
        try:
            return ended, self.engine.client.containers.get(full)
        except NotFound:
            pytest.fail(f"compose made no container {full}: exit code {ended.code}\n{ended.said}")


def remove(container: Container) -> None:
    """Removes a container, its volumes too; one that goes by itself is let go."""
    with suppress(NotFound):
        try:
            container.remove(force=True, v=True)
        except APIError as error:
            if error.status_code != 409:  # its removal is under way
                raise


def found(chunks: Iterable[bytes], needle: bytes) -> bool:
    """Whether the bytes are in the stream, also across two of its pieces."""
    before = b""
    for chunk in chunks:
        if needle in (piece := before + chunk):
            return True
        before = piece[max(0, len(piece) - len(needle) + 1) :]
    return False


def files_with(text: str, *roots: Path) -> list[Path]:
    """The files below the directories that hold the text."""
    return [path for path in below(*roots) if path.is_file() and found(pieces(path), text.encode())]


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def of_others(uid: int, *roots: Path) -> list[Path]:
    """What below the directories, and they themselves, does not belong to the user."""
    return [path for path in (*roots, *below(*roots)) if path.lstat().st_uid != uid]


def below(*roots: Path) -> Iterator[Path]:
    """Files, links and directories; a directory that cannot be listed is an error."""

    def refuse(error: OSError) -> None:
        raise error

    for root in roots:
        for place, directories, files in os.walk(root, onerror=refuse):
            yield from (Path(place, name) for name in (*directories, *files))
