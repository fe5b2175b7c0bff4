"""The container engine, through its SDK: connect, read what an image holds, run one container."""

from __future__ import annotations

import io
import os
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from harness.errors import HarnessError
from harness.image.contents import SUMMARY, Tree, of_tar
from harness.image.parts import Summary, read_summary
from harness.image.variables import DECLARED, SET, differences, read_declared

# Engine 20.10, the first whose builder can build these images.
_OLDEST_API = (1, 41)
# The engine writes an image of many gigabytes to its disk before it sends the first byte.
_PATIENCE_S = 3600
_SUMMARY_BYTES = 16 << 20
_OUTPUT_BYTES = 64 << 20
_LAST_LINES = 50


class Ended(NamedTuple):
    """How a container ended: its exit code, and what it wrote to both of its streams."""

    code: int
    out: str
    err: str


def connect() -> Any:
    """A client of the engine that the `docker` command talks to.

    Raises: HarnessError "docker-sdk-missing", "no-engine" or "engine-too-old".
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError as error:
        raise HarnessError(
            "docker-sdk-missing",
            "the engine's SDK is not installed",
            got=str(error),
            need="the package docker, 7.1 or newer, in the environment of the host",
            fix="ci/local replay RUN, which has it; or pip install 'docker>=7.1'",
        ) from error
    address = _address()
    try:
        client = docker.DockerClient(base_url=address, version="auto", timeout=_PATIENCE_S)
        told = client.version()
    except (DockerException, OSError) as error:
        raise HarnessError(
            "no-engine",
            "no container engine answers",
            got=f"{address}: {error}",
            need="a running engine, and the right to use its socket",
            fix="sudo systemctl start docker; another engine: DOCKER_HOST=unix:///run/user/1000/docker.sock",
        ) from error
    check_version(told)
    return client


def check_version(told: Mapping[str, Any]) -> None:
    """Refuses an engine whose API is older than these images need.

    Raises: HarnessError "engine-too-old".
    """
    api = str(told.get("ApiVersion", ""))
    parts = re.fullmatch(r"\A(\d++)\.(\d+)", api)
    if parts is None or (int(parts[1]), int(parts[2])) < _OLDEST_API:
        raise HarnessError(
            "engine-too-old",
            "the container engine is too old for these images",
            got=f"engine {told.get('Version', '?')}, API {api or 'not told'}",
            need="engine 20.10 (API 1.41) or newer",
            fix="update the engine: apt-get install docker.io, or docker-ce of its makers",
        )


def _address() -> str | None:
    """The engine's address: DOCKER_HOST, else that of the command's context, which the SDK does not read."""
    command = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("DOCKER_HOST")
    return told.stdout.strip() or None


def get_image(client: Any, name: str) -> Any:
    """The image of that name or id.

    Raises: HarnessError "no-such-image".
    """
    from docker.errors import ImageNotFound

    try:
        return client.images.get(name)
    except ImageNotFound as error:
        raise HarnessError(
            "no-such-image",
            f"the engine has no image {name}",
            need="an image's name or id",
            fix="docker image ls harness, for the names that there are",
        ) from error


@contextmanager
def container(client: Any, image_id: str, **settings: Any) -> Iterator[Any]:
    """A container that is made, not started; removed at the end."""
    made = client.containers.create(image_id, **settings)
    try:
        yield made
    finally:
        made.remove(force=True, v=True)


def said(client: Any, image_id: str) -> Summary | None:
    """What an image says that it holds. None if it says nothing that can be read."""
    from docker.errors import NotFound

    with container(client, image_id, entrypoint=["true"], command=[]) as made:
        try:
            stream, told = made.get_archive(f"/{SUMMARY}")
        except NotFound:
            return None
        if told.get("size", 0) > _SUMMARY_BYTES:
            return None
        try:
            with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
                file = next((archive.extractfile(each) for each in archive if each.isreg()), None)
                return None if file is None else read_summary(file.read(_SUMMARY_BYTES).decode())
        except (tarfile.TarError, ValueError):
            return None


def contents(client: Any, image_id: str) -> Tree:
    """All that an image holds, read from the engine to the last byte."""
    with container(client, image_id, entrypoint=["true"], command=[]) as made:
        return of_tar(cast(IO[bytes], io.BufferedReader(Pieces(made.export()))))


def variables(image: Any) -> dict[str, str]:
    """The variables of an image's settings."""
    pairs = (each.partition("=") for each in image.attrs["Config"].get("Env") or [])
    return {name: value for name, _, value in pairs}


def other_variables(image: Any, tree: Tree) -> dict[str, str]:
    """The variables of the image's settings that are not those which its build wrote down."""
    environ = variables(image)
    try:
        return differences(read_declared(tree.texts.get(DECLARED, b"{}")), environ)
    except ValueError:
        return dict.fromkeys(environ, SET)


def run(client: Any, image_id: str, say: Callable[[str], None], **settings: Any) -> Ended:
    """Runs one container to its end."""
    with container(client, image_id, **settings) as made:
        made.start()
        for line in made.logs(stdout=False, stderr=True, stream=True, follow=True):
            say(line.decode(errors="replace").rstrip())
        code = made.wait(timeout=_PATIENCE_S)["StatusCode"]
        out, err = (
            _text(
                made.logs(stdout=first, stderr=not first, stream=True, tail="all" if first else _LAST_LINES)
            )
            for first in (True, False)
        )
        return Ended(code, out, err)


def _text(pieces: Iterator[bytes]) -> str:
    """The pieces as text. The program in an image may be a stranger's: only so much is read of it."""
    read = bytearray()
    for piece in pieces:
        read += piece
        if len(read) > _OUTPUT_BYTES:
            break
    return bytes(read[:_OUTPUT_BYTES]).decode(errors="replace")


class Pieces(io.RawIOBase):
    """A stream of pieces as a file that is read once."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            try:
                self._left = next(self._pieces)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
