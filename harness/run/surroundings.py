"""A run's surroundings that can change its numbers: packages, image, environment variables, machine.

They are recorded before the run and compared after it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import harness
from harness.artifacts import Machine
from harness.image.here import Here, claimed
from harness.received.litter import is_litter
from harness.run.directory import cache_root
from harness.run.revision import built_from

# The whole package, not this room of it.
_PACKAGE = Path(harness.__file__).parent
# Packages that can change a run's numbers. The digest over all installed files covers the others.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "grain",
    "pyarrow",
    "pillow",
    "av",
    "sentencepiece",
    "wandb",
    "harness",
)
# A list of single names: none of these variables contains a key or a token.
_ENVIRONMENT = (
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_ALLOCATOR",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_DEFAULT_DTYPE_BITS",
    "JAX_ENABLE_X64",
    "JAX_NUMPY_DTYPE_PROMOTION",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_OPTIMIZATION_LEVEL",
    "JAX_DEFAULT_PRNG_IMPL",
    "JAX_THREEFRY_PARTITIONABLE",
    "JAX_CPU_ENABLE_ASYNC_DISPATCH",
    "JAX_DEBUG_NANS",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "OMP_NUM_THREADS",
    # The order in which several cards add up.
    "NCCL_ALGO",
    "NCCL_PROTO",
)
# With the first flag XLA times no kernels. With the second XLA chooses by timing, and the choice is kept with
# the run (harness/train/kernels.py).
DETERMINISTIC, _NO_RANDOM_ORDER = "--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops"
# The variables that an image sets about itself (Dockerfile, docker/entrypoint), and one that only the
# container engine knows.
_IMAGE = {
    "lock_sha256": "HARNESS_LOCK_SHA256",
    "source_revision": "HARNESS_REVISION",
    "image": "HARNESS_IMAGE",
    "image_id": "HARNESS_IMAGE_ID",
}
_NO_IMAGE = Here(unknown=dict.fromkeys(("image_content", "image_environment"), "not in one of our images"))
_ID_FIX = (
    "a container cannot see its own image's id: HARNESS_IMAGE_ID=$(docker image inspect --format '{{.Id}}'"
    " harness:cuda) docker compose run ..."
)


class Software(NamedTuple):
    """The software of a run. A field is None if this process cannot know it; `unknown` gives the reason.

    `packages_sha256` covers every file that pip installed. `image_digest` covers these and the system's
    packages. It is the same for each build of one lock on one base, while the engine's `image_id` differs for
    each build. `image_content` is the digest of all that the image holds, `image_parts` a value for each of
    its packages and files, `image_environment` the variables that are not as the image sets them.
    """

    packages: dict[str, str]
    python: str
    packages_sha256: str
    lock_sha256: str | None
    source_sha256: str
    source_revision: str | None
    source_dirty: bool | None
    image: str | None
    image_id: str | None
    image_digest: str | None
    base_digest: str | None
    image_content: str | None
    image_parts: dict[str, str] | None
    image_environment: dict[str, str] | None
    unknown: dict[str, str]


def image_here() -> str | None:
    """The name of the image that this process runs in, as the image gives it. None outside of one."""
    return os.environ.get(_IMAGE["image"]) or None


def software_here(inside: Here | None = None) -> Software:
    """The software of this process. Lock, revision and image name come from the image's environment.

    `inside` is the image's content as it was read; else the image's own word, which is looked over.
    """
    named = {field: os.environ.get(name) or None for field, name in _IMAGE.items()}
    unknown = {
        field: f"{_IMAGE[field]} is not set: not in one of our images"
        for field, value in named.items()
        if value is None
    }
    image = named["image"]
    if image is not None and named["image_id"] is None:
        unknown["image_id"] = _ID_FIX
    installed = installed_digest()
    base = re.search(r"@(sha256:[0-9a-f]{64})$", image or "")
    if base is None:
        unknown["base_digest"] = (
            "not in one of our images" if image is None else f"the base was not named by its digest: {image}"
        )
    here = inside or (claimed() if image is not None else _NO_IMAGE)
    unknown |= here.unknown
    if image is None:
        unknown["image_digest"] = "not in one of our images"
    dirty, why = source_dirty()
    if dirty is None:
        unknown["source_dirty"] = why
    return Software(
        packages={name: version_of(name) for name in _PACKAGES},
        python=platform.python_version(),
        packages_sha256=installed,
        source_sha256=source_digest(),
        source_dirty=dirty,
        image_digest=None if image is None else image_digest(installed),
        base_digest=base[1] if base else None,
        image_content=here.content,
        image_parts=here.parts,
        image_environment=here.environment,
        unknown=unknown,
        **named,
    )


def installed_digest() -> str:
    """SHA-256 over pip's records of every file of every distribution.

    The harness itself is left out: the revision of the source identifies it.
    """
    lines = []
    for distribution in metadata.distributions():
        name, files = distribution.metadata["Name"], distribution.read_text("RECORD") or ""
        # Compiled Python files and pip's own notes have no hash there, and differ between installations.
        kept = sorted(
            line for line in files.splitlines() if ",sha256=" in line and "direct_url.json" not in line
        )
        if name != "harness":
            lines.append(
                f"{name} {distribution.version} {hashlib.sha256(chr(10).join(kept).encode()).hexdigest()}"
            )
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def image_digest(installed: str, root: Path = Path("/")) -> str:
    """SHA-256 over the OS release, the version of every system package, and `installed`."""
    release, status = (
        (root / name).read_text(errors="replace") if (root / name).is_file() else ""
        for name in ("etc/os-release", "var/lib/dpkg/status")
    )
    packages = sorted(
        "".join(re.findall(r"^(?:Package|Version|Architecture): .*$", block, re.MULTILINE))
        for block in status.split("\n\n")
    )
    return hashlib.sha256("\n".join([release, *packages, installed]).encode()).hexdigest()


def source_digest(package: Path = _PACKAGE) -> str:
    """SHA-256 over the names and contents of the files of `package`, wherever it is installed."""
    total = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        if is_litter(*path.relative_to(package).parts):
            continue
        total.update(
            f"{path.relative_to(package).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return total.hexdigest()


def source_dirty(checkout: Path = _PACKAGE.parent) -> tuple[bool | None, str]:
    """True if the source differs from its commit; if unknown, None and the reason.

    The answer comes from the build's environment, else from git.
    """
    if (told := built_from()) is not None:
        return told.endswith("-dirty"), ""
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return (
            None,
            (
                "neither git nor a checkout here; ci/images tells a build what git says, a plain docker"
                " compose build does not"
            ),
        )
    command = ["git", "-C", str(checkout), "status", "--porcelain", "--", "harness", "docker"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        return None, f"git status failed: {done.stderr.strip()[:200]}"
    return bool(done.stdout.strip()), ""


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The set variables that change what is computed."""
    return {name: environ[name] for name in _ENVIRONMENT if environ.get(name)}


def deterministic(environ: Mapping[str, str] = os.environ) -> str:
    """XLA_FLAGS with the flag for deterministic kernels on a GPU. If the flag is present, it stays as set."""
    flags = environ.get("XLA_FLAGS", "")
    return flags if DETERMINISTIC in flags else f"{flags} {DETERMINISTIC}=true".strip()


def jax_variables(platform: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables with which JAX starts on `platform` to train, but for the device and its share of memory.

    A plan that compiles the step for this machine sets the same. The trainer then finds the program in JAX's
    cache, whose key holds XLA_FLAGS.
    """
    # The images set the flag too. What was started in another way must compute the same bits.
    flags = {"XLA_FLAGS": deterministic(environ)} if platform == "cuda" else {}
    usual = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(cache_root() / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {"JAX_PLATFORMS": platform} | flags | {name: environ.get(name, usual[name]) for name in usual}


def is_deterministic(variables: Mapping[str, str]) -> bool:
    """True if a GPU computes the same bits again under these variables.

    XLA has two flags for it; either is enough.
    """
    flags = xla_flags(variables.get("XLA_FLAGS", ""))
    return any(
        flags.get(name, "false").lower() in ("true", "1") for name in (DETERMINISTIC, _NO_RANDOM_ORDER)
    )


def xla_flags(text: str) -> dict[str, str]:
    """Flag → value of XLA_FLAGS. If a flag occurs twice, the last value counts, as in XLA."""
    pairs = (flag.partition("=") for flag in text.split())
    return {name: value if equals else "true" for name, equals, value in pairs}


def machine_facts(machine: Machine | None) -> dict[str, Any]:
    """Driver, cards and host, without facts that change from minute to minute."""
    if machine is None:
        return {}
    cards = [f"{gpu.name} ({gpu.compute_capability})" for gpu in machine.usable_gpus]
    host = machine.host
    return {
        "driver": machine.driver_version,
        "cuda": machine.cuda_driver_version,
        "gpus": cards,
        "host": host.hostname,
        "processor": host.processor,
        "kernel": host.kernel,
        "cores": host.cores,
        "ram_total_bytes": host.ram_total_bytes,
        "container": host.container,
        "wsl": host.wsl,
    }


def version_of(package: str) -> str:
    """The installed version of `package`, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
