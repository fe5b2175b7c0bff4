"""The environment variables that an image sets, and how a container's differ from them.

python -m harness.image.variables        in a build: the image's own, as JSON
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from harness.image.contents import LISTS

# The image's own variables, written by the build: {"NAME": "value"}.
DECLARED = f"{LISTS}/environment.json"
# What differs from container to container and changes no number: who runs it, where its files are, how it
# reaches a network, which keys it has, which process of a run it is (`harness.run.cluster`; the plan says how
# many share the work). `harness.run.surroundings` records those of XLA and NCCL one by one.
_OF_A_CONTAINER = re.compile(
    r"\A(?:HARNESS_.*|WANDB_.*|HF_.*|NCCL_.*|XLA_FLAGS|CUDA_VISIBLE_DEVICES"
    r"|NVIDIA_(VISIBLE_DEVICES|DRIVER_CAPABILITIES)"
    r"|(HTTPS?|ALL|NO|FTP)_PROXY|(https?|all|no|ftp)_proxy|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|PIP_.*"
    r"|JAX_(COORDINATOR_ADDRESS|NUM_PROCESSES|PROCESS_ID|LOCAL_DEVICE_IDS)|JOB_COMPLETION_INDEX"
    r"|MASTER_(ADDR|PORT)|(LOCAL_)?WORLD_SIZE|(LOCAL_)?RANK|TORCHELASTIC_\w+|(OMPI|PMIX|SLURM)_\w+"
    r"|HOSTNAME|TERM|COLUMNS|LINES|PWD|OLDPWD|SHLVL|_|container|KUBERNETES_.*|\w+_SERVICE_(HOST|PORT).*)"
)
# What a build gives its steps, and no image keeps.
_OF_A_BUILD = re.compile(
    r"\A(?:BASE_IMAGE|[A-Z0-9]++_LOCK_SHA256|OPENPI_COMMIT|APT_\w+|PYTHONCOERCECLOCALE|BUILDKIT_\w+"
    r"|SOURCE_DATE_EPOCH)"
)
# What the loader, Python or a numeric library obeys. The value is recorded; of others, only the name.
_COMPUTES = re.compile(
    r"(LD|PYTHON|XLA|JAX|TF|OMP|OPENBLAS|MKL|BLIS|NUMEXPR|KMP|GOTO|CUDA|CUDNN|CUBLAS|NVIDIA|MALLOC|GLIBC|NUMBA)_?\w*"
    r"|PATH|TZ|LANG|LC_\w+|LANGUAGE"
)
# A value that cannot be wrong to tell; another variable of a stranger's may hold a key.
SET, UNSET = "set", "not set"


def is_compared(name: str) -> bool:
    """True if a variable of this name belongs to the image rather than to one container."""
    return _OF_A_CONTAINER.fullmatch(name) is None


def declared(environ: Mapping[str, str]) -> dict[str, str]:
    """Those of the variables that an image answers for."""
    return {name: value for name, value in sorted(environ.items()) if is_compared(name)}


def differences(image: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variable → its value here, for those that are not as the image declares them."""
    found = {}
    for name in sorted(image.keys() | environ.keys()):
        if is_compared(name) and image.get(name) != environ.get(name):
            tells = name in image or _COMPUTES.fullmatch(name) is not None
            found[name] = UNSET if name not in environ else environ[name] if tells else SET
    return found


def read_declared(text: str | bytes) -> dict[str, str]:
    """The variables of an image's own file.

    Raises: ValueError for what is none.
    """
    body = json.loads(text)
    if not (isinstance(body, dict) and all(isinstance(value, str) for value in body.values())):
        raise ValueError("no list of environment variables")
    return body


def of_container(process: Path = Path("/proc/1/environ")) -> dict[str, str]:
    """The variables that the container was started with: those of its first process.

    A trainer's own are not asked, since the harness sets some for it.
    Raises: OSError where they may not be read.
    """
    pairs = (each.partition("=") for each in process.read_bytes().decode(errors="replace").split("\0"))
    return {name: value for name, equals, value in pairs if equals}


if __name__ == "__main__":
    # In a build, when all of the image's variables are set.
    kept = {name: value for name, value in os.environ.items() if _OF_A_BUILD.fullmatch(name) is None}
    sys.stdout.write(json.dumps(declared(kept), indent=1, sort_keys=True) + "\n")
