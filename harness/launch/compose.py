"""A compose file with one service a host, which are told by variables who they are.

Without --coordinator all of them are containers of one machine, on a network of their own: a way to try it.
With it each machine starts its own service of the same file, on the machine's own network.

Source: the Compose specification (github.com/compose-spec/compose-spec, 05-services.md, 08-configs.md).
"""

from __future__ import annotations

from typing import Any

from harness.launch.asked import PORT, Asked
from harness.launch.command import RECIPE, contained_words, head
from harness.launch.yaml_text import documents
from harness.received.text import word
from harness.run.cluster import COORDINATOR, COUNT, ID
from harness.run.directory import RECIPE as RECIPE_FILE

# A recipe that is no shipped one is a file beside the other. Compose would copy a text of `configs.content`
# into the container, whose root filesystem is read-only (measured: "container rootfs is marked read-only").
FILE = "compose.yaml"
# Passed on from the environment of whoever starts it. A key is never in the file.
_PASSED = (
    "WANDB_API_KEY",
    "WANDB_MODE",
    "HF_TOKEN",
    "HF_HUB_OFFLINE",
    "HARNESS_OFFLINE",
    "NCCL_SOCKET_IFNAME",
)


def compose_file(asked: Asked) -> str:
    """The text of the compose file."""
    names = [f"host-{number}" for number in range(asked.hosts)]
    made: dict[str, Any] = {
        "name": asked.dns or "run",
        "services": {name: _service(asked, number, names) for number, name in enumerate(names)},
    }
    if asked.recipe_text is not None:
        made["configs"] = {"recipe": {"file": f"./{RECIPE_FILE}"}}
    if asked.coordinator is None:
        use = [f"docker compose -f {FILE} up     starts all here; again, it goes on from the last save"]
    else:
        use = [
            f"docker compose -f {FILE} up host-N     on machine N; 0 is the coordinator's",
            "The directories of runs and of the cache are one filesystem that all machines see.",
            *([f"{RECIPE_FILE} goes with this file."] if asked.recipe_text is not None else []),
        ]
    return documents(head(asked, *use), made)


def recipe_file(asked: Asked) -> str | None:
    """The text of a recipe of one's own."""
    return asked.recipe_text


def starts(asked: Asked, file: str) -> list[str]:
    """The commands that start the run from this file; one a machine.

    The engine refuses a directory that is missing. On one machine they are made first.
    """
    if asked.coordinator is not None:
        return [f"docker compose -f {file} up host-{number}" for number in range(asked.hosts)]
    made = " ".join(word(path) for path in (asked.runs, asked.datasets, asked.cache))
    return [f"mkdir -p {made}", f"docker compose -f {file} up"]


def _service(asked: Asked, number: int, names: list[str]) -> dict[str, Any]:
    apart = asked.coordinator is not None
    address = asked.coordinator or names[0]
    if not address.rpartition(":")[2].isdigit() or address.endswith("]"):
        address = f"{address}:{PORT}"
    uid, gid = asked.user
    service: dict[str, Any] = {
        "image": asked.image,
        "entrypoint": [_literal(each) for each in contained_words(asked, f"/runs/{asked.name}")],
        "environment": {
            **dict.fromkeys(_PASSED),
            # After those: what was given with --env counts more than what whoever starts it has.
            **{name: _literal(value) for name, value in asked.environment.items()},
            COORDINATOR: address,
            COUNT: str(asked.hosts),
            ID: str(number),
        },
        "volumes": [
            _bind(asked.runs, "/runs"),
            _bind(asked.datasets, "/datasets") | {"read_only": True},
            _bind(asked.cache, "/cache"),
        ],
        "user": f"{uid}:{gid}",
        "init": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "ulimits": {"nofile": 16384, "stack": 67108864, "core": 0},
        "tmpfs": ["/tmp:exec,mode=1777"],
        "shm_size": "8gb",
        "stop_grace_period": f"{asked.grace_s}s",
        "restart": f"on-failure:{asked.restarts}" if asked.restarts else "no",
    }
    if asked.recipe_text is not None:
        service["configs"] = [{"source": "recipe", "target": RECIPE}]
    if apart:
        service["network_mode"] = "host"
    if asked.cpus is not None:
        service["cpus"] = asked.cpus
    if asked.memory_gib is not None:
        service["mem_limit"] = f"{asked.memory_gib}g"
    if asked.gpus:
        service["deploy"] = {"resources": {"reservations": {"devices": [_gpus(asked, number, apart)]}}}
    return service


def _gpus(asked: Asked, number: int, apart: bool) -> dict[str, Any]:
    """The GPUs of one service. On one machine each has its own of them."""
    device: dict[str, Any] = {"driver": "nvidia", "capabilities": ["gpu"]}
    if apart:
        return device | {"count": asked.gpus}
    first = number * asked.gpus
    return device | {"device_ids": [str(each) for each in range(first, first + asked.gpus)]}


def _bind(source: str, target: str) -> dict[str, Any]:
    # A directory that is missing is an error; the engine would make it, as root's.
    return {
        "type": "bind",
        "source": _literal(source),
        "target": target,
        "bind": {"create_host_path": False},
    }


def _literal(text: str) -> str:
    """`text` for a file in which a dollar sign begins the name of a variable."""
    return text.replace("$", "$$")
