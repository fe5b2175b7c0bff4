"""A run verified inside of the image that its manifest names, with the verdict written outside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from harness.artifacts import Manifest
from harness.artifacts.replayed import Replayed
from harness.artifacts.verdict import Verdict
from harness.errors import HarnessError
from harness.image.parts import some
from harness.received.files import check_stays, open_received, walk
from harness.received.json import parse_json
from harness.received.text import one_line
from harness.replay.engine import run as run_container
from harness.replay.find import Looked, build, look, read
from harness.run.directory import RunDir

# The verdict inside is the harness's own, of another version perhaps.
_START = "/opt/harness/docker/entrypoint"
_LOGS = "wandb"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")
# Recorded variables that are given again. One that names a file is not: the run's own files stay data.
_GIVEN = re.compile(r"(XLA|JAX|NVIDIA|CUBLAS|OMP|NCCL)_[A-Z0-9_]+")


class Asked(NamedTuple):
    """What a replay may use: an image by name, a checkout to build from, steps, the places of the data."""

    image: str | None = None
    build: bool = False
    checkout: Path = Path()
    steps: int = 3
    start: int = 0
    datasets: Path | None = None
    cache: Path | None = None


def replay(client: Any, run: RunDir, asked: Asked, say: Callable[[str], None]) -> Replayed:
    """The verdict on `run` inside of its image. "cannot tell" where there is no image that matches.

    Raises: HarnessError "not-a-run"; UnsafeFile for a run with links out of it; those of the engine.
    """
    if run.path.is_dir():
        check_closed(run)
    manifest = run.read(Manifest)
    if manifest is None:
        raise HarnessError(
            "not-a-run",
            f"{run.path} has no {Manifest.FILE}",
            need="the directory of a run that was started with this harness",
            fix="harness replay runs/NAME",
        )
    answer = Replayed(
        run=str(run.path),
        manifest_sha256=run.manifest_sha256(),
        content=manifest.image_content,
        verdict="cannot tell",
    )
    if manifest.image_content is None:
        why = manifest.unknown.get("image_content", "its harness did not record it yet")
        return answer.model_copy(update={"reason": f"the manifest names no image by its contents: {why}"})
    found, others = look(client, manifest, asked.image, say)
    if found is None and asked.build:
        made = read(client, build(client, manifest, asked.checkout, say), manifest, say, "built")
        found, others = (None, [*others, made]) if made.unlike else (made, others)
    if found is None:
        return answer.model_copy(update=_nothing(manifest, others, asked))
    ended = run_container(client, found.image_id, say, **settings(manifest, run, found, asked))
    update = {
        "image": found.name,
        "image_id": found.image_id,
        "computed": found.computed,
        "origin": found.origin,
    }
    return answer.model_copy(update=update | _inside(ended.code, ended.out, ended.err))


def check_closed(run: RunDir) -> None:
    """Refuses a run that leads out of itself or holds what is no file: all of it is mounted in a container.

    Raises: UnsafeFile "file-leaves-root" or "file-not-regular".
    """
    strays: list[Path] = []
    for _ in walk(run.path, strays=strays):
        pass
    # wandb links its logs to its own places; inside, such a link leads nowhere, and nobody opens it.
    for stray in (each for each in strays if each.relative_to(run.path).parts[0] != _LOGS):
        check_stays(stray, run.path)
        if not stray.is_dir():
            open_received(stray, run.path).close()


def settings(manifest: Manifest, run: RunDir, found: Looked, asked: Asked) -> dict[str, Any]:
    """What the container is started with: as compose.yaml confines it, the run read-only, no network."""
    import docker

    name = run.path.resolve().name
    inside = f"/runs/{name if _PLAIN.fullmatch(name) else 'run'}"
    mounts = [(run.path, inside), (asked.datasets, "/datasets"), (asked.cache, "/cache")]
    mounts = [
        docker.types.Mount(target, str(path.resolve()), type="bind", read_only=True)
        for path, target in mounts
        if path is not None
    ]
    owner = run.path.stat()
    # Root without capabilities may read less than the owner of the files.
    user = (owner.st_uid, owner.st_gid) if os.getuid() == 0 else (os.getuid(), os.getgid())
    tmpfs = {"/tmp": "exec,mode=1777"}
    if asked.cache is None:
        # The mode alone is not enough: a mount over a directory of the image takes that directory's.
        tmpfs["/cache"] = f"uid={user[0]},gid={user[1]},mode=0700"
    cuda = manifest.plan.levers.platform == "cuda"
    gpus = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])] if cuda else None
    given = {
        name: value
        for name, value in manifest.environment.items()
        if _GIVEN.fullmatch(name) and "/" not in value
    }
    return {
        "entrypoint": [_START],
        "command": ["verify", inside, "--steps", str(asked.steps), "--from", str(asked.start), "--json"],
        "environment": given | _OFFLINE | {"HARNESS_IMAGE_ID": found.image_id},
        "mounts": mounts,
        "tmpfs": tmpfs,
        "user": f"{user[0]}:{user[1]}",
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "init": True,
        "pids_limit": 8192,
        "shm_size": "1g",
        "ulimits": [docker.types.Ulimit(name="stack", soft=1 << 26, hard=1 << 26)],
        "device_requests": gpus,
    }


_OFFLINE = {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HARNESS_OFFLINE": "1"}


def _nothing(manifest: Manifest, others: list[Looked], asked: Asked) -> dict[str, Any]:
    """The answer where no image holds what the manifest names; what those that were read hold instead."""
    if others:
        first = others[0]
        return {
            "reason": f"{first.name} is not the image that the manifest names: {some(first.unlike)}",
            "image": first.name,
            "image_id": first.image_id,
            "computed": first.computed,
            "origin": first.origin,
            "first_difference": first.unlike[0],
            "differences": first.unlike,
        }
    how = (
        "ask who made the run for it (docker save IMAGE, then docker load here)"
        if asked.build
        else "harness replay RUN --build builds it from the commit that the manifest names"
    )
    return {"reason": f"no image here holds {manifest.image_content} ({manifest.image}): {how}"}


def _inside(code: int, out: str, err: str) -> dict[str, Any]:
    """The answer from what `harness verify` wrote inside of the image."""
    if code not in (0, 1):
        tail = one_line(err.strip()[-600:]) or "nothing was said"
        return {"reason": f"verify could not be done inside of the image (exit code {code}): {tail}"}
    try:
        verdict = Verdict.model_validate(parse_json(out))
    except (ValueError, ValidationError) as error:
        return {"reason": f"the answer from inside of the image cannot be read: {one_line(str(error))[:300]}"}
    told: dict[str, Any] = {
        "verdict": verdict.verdict,
        "inside": verdict,
        "first_difference": verdict.first_difference,
    }
    if verdict.verdict == "cannot tell":
        doubts = [
            f"{row.field}: {row.note}"
            for row in verdict.fields
            if row.status == "cannot tell" and row.matters
        ]
        if verdict.replay is not None and verdict.replay.status == "cannot tell":
            doubts.append(verdict.replay.note)
        told["reason"] = some(doubts)
    if verdict.verdict == "equal" and code != 0:
        return {"reason": "the answer from inside of the image contradicts its exit code", "inside": verdict}
    return told


def output(run: RunDir) -> Path:
    """Where the verdict is written if no place is named: beside the run, which stays as it is."""
    return run.path.resolve().parent / f"{run.path.resolve().name}.{Replayed.FILE}"
