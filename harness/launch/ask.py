"""From the options of the verb, a recipe and a plan to what is asked of an engine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import HarnessError
from harness.flow.find import check_name, default_recipe
from harness.launch.asked import IMAGE_USER, Asked, Engine, validated
from harness.recipe.load import load_recipe, shipped_recipes, to_yaml
from harness.run.directory import cache_root, new_run, runs_root

if TYPE_CHECKING:
    from harness.artifacts import Plan
    from harness.recipe.schema import Recipe

# What a process has to be told to find the same files and to compute the same bits. No key is among them.
_PATHS = ("HARNESS_CACHE", "HARNESS_DATASETS", "HF_HOME", "JAX_COMPILATION_CACHE_DIR")
_KEPT = ("PYTHONPATH", "XLA_FLAGS", "HARNESS_LOCK_SHA256", "HARNESS_REVISION", "HARNESS_LOADER_WORKERS")
_SECRET = re.compile(r"(?i)(?:key|token|secret|passw|credential)")
_GPU = re.compile(r"(?P<card>[^:]+)(?::(?P<count>[1-9]\d?))?")

# The ids that Kubernetes and the engines of containers take: those of 31 bits.
_USERS = 2**31


class Wanted(NamedTuple):
    """What was typed. `train`: options of `harness train`; `environment`: NAME=VALUE each."""

    engine: Engine
    hosts: int
    run: Path | None
    name: str | None
    recipe: str | None
    sets: list[str]
    train: list[str]
    gpu: str | None
    gpus: int | None
    out: Path | None
    environment: list[str]
    user: str | None
    submit: bool


def ask(wanted: Wanted, plan: Callable[[str, str, list[str]], Plan], more: dict[str, Any]) -> Asked:
    """What is asked of the engine. `plan(gpu, recipe, sets)` plans for the cards of all hosts.

    `more`: fields of `Asked` as they are.
    Raises: HarnessError "launch-option", "launch-devices", "launch-plan", "launch-batch", "launch-run",
    "launch-env", "launch-user", "run-name-invalid", and those of `load_recipe` and `validated`.
    """
    engine, hosts = wanted.engine, wanted.hosts
    if wanted.submit and engine != "slurm":
        raise HarnessError(
            "launch-option",
            f"only Slurm is submitted to; for {engine} there are files, and the command that starts them",
            got=f"--engine {engine} --submit",
            need="--submit with slurm",
            fix="leave --submit out",
        )
    named = wanted.recipe or default_recipe()
    # What the hosts would refuse is refused before a job waits for them.
    last = [f"train.{each.removeprefix('--')}" for each in wanted.train if each.startswith("--steps=")]
    own = load_recipe(named, [*wanted.sets, *last])
    _check_batch(own, hosts)
    directory = _run(engine, wanted.run, wanted.name, named)
    shipped = named in shipped_recipes()
    contained = engine in ("kubernetes", "compose") or (engine == "slurm" and more["image"] is not None)
    given = {
        "engine": engine,
        "hosts": hosts,
        "name": directory.name,
        "recipe": named if shipped else str(Path(named).resolve()),
        # With the numbers of episodes that stood in a file beside it, so that it stands alone.
        "recipe_text": None if shipped else to_yaml(load_recipe(named)),
        "options": [*(f"--set={each}" for each in wanted.sets), *wanted.train],
        "program": [sys.executable, "-m", "harness.cli"],
        "out": str((wanted.out or Path("launch") / directory.name).absolute()),
        "runs": str(directory.parent),
        "cache": str(cache_root().absolute()),
        "datasets": str(Path(os.environ.get("HARNESS_DATASETS") or "datasets").absolute()),
        "environment": ({} if contained else _own_environment()) | _given(wanted.environment),
        "user": _user(engine, wanted.user),
        **more,
    }
    if wanted.gpu is not None:
        # A plan may be compiled for minutes. What is wrong whatever it says is refused before.
        validated({**given, "gpus": 1, "plan": None})
    gpus, planned = _devices(hosts, wanted.gpu, wanted.gpus, lambda cards: plan(cards, named, wanted.sets))
    return validated({**given, "gpus": gpus, "plan": planned})


def _user(engine: Engine, text: str | None) -> tuple[int, int]:
    """(uid, gid) in the containers."""
    if text is None:
        return (os.getuid(), os.getgid()) if engine == "compose" else IMAGE_USER
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text)
    user = (int(found[1]), int(found[2])) if found else (-1, -1)
    if not all(0 <= number < _USERS for number in user):
        raise HarnessError(
            "launch-user",
            "--user is two numbers",
            got=text,
            need=f"UID:GID, each below {_USERS}",
            fix="--user 1000:1000",
        )
    if engine not in ("kubernetes", "compose"):
        raise HarnessError(
            "launch-option",
            f"--user says nothing to {engine}: its processes are those of whoever submits",
            got=f"--engine {engine} --user",
            need="--user with kubernetes or compose",
            fix="leave --user out",
        )
    if engine == "kubernetes" and user[0] == 0:
        raise HarnessError(
            "launch-user",
            "root is no user of these pods: Kubernetes starts no container of runAsNonRoot as user 0",
            got=text,
            need="a UID above 0 that may write in the volume",
            fix="--user 1000:1000",
        )
    return user


def _run(engine: Engine, run: Path | None, name: str | None, recipe: str) -> Path:
    """The run's directory, absolute, as the hosts see it."""
    if run is not None and name is not None:
        raise HarnessError(
            "run-and-name", "--run and --name both say where the run is", fix="give one of the two"
        )
    if run is not None and engine == "kubernetes":
        raise HarnessError(
            "launch-run",
            "in Kubernetes a run lies in the volume, and not below a directory of this machine",
            got="--run",
            need="--name",
            fix="--name NAME: runs/NAME of the volume",
        )
    if name is not None:
        check_name(name)
    if run is None:
        run = new_run(Path(recipe).stem).path if name is None else runs_root() / name
    return run.absolute()


def _devices(
    hosts: int, gpu: str | None, gpus: int | None, plan: Callable[[str], Plan]
) -> tuple[int, str | None]:
    """(GPUs of a host, the plan in words)."""
    if (gpu is None) == (gpus is None):
        raise HarnessError(
            "launch-devices",
            "one of --gpu and --gpus says what a host has",
            got="neither" if gpu is None else "both",
            need="--gpu h100:8 (planned for these), --gpus 8 (not planned), or --gpus 0 (CPUs)",
            fix="--gpu h100:8",
        )
    if gpu is None:
        return gpus or 0, None
    found = _GPU.fullmatch(gpu)
    if found is None:
        raise HarnessError(
            "launch-devices",
            "--gpu is a card, or a card and how many of it a host has",
            got=gpu,
            need="such as h100:8",
            fix="--gpu h100:8",
        )
    count = int(found["count"] or 1)
    made = plan(f"{found['card']}:{count}" + (f"x{hosts}" if hosts > 1 else ""))
    if made.chosen is None:
        raise HarnessError(
            "launch-plan",
            f"no plan fits {made.device}",
            got=made.candidates[-1].reason if made.candidates else None,
            need="a plan that fits",
            fix="other cards, more of them, or another recipe: harness plan --matrix shows what fits where",
        )
    return count, f"{made.device}, {made.chosen.reason}"


def _check_batch(recipe: Recipe, hosts: int) -> None:
    rows = recipe.train.global_batch
    if rows % hosts:
        raise HarnessError(
            "launch-batch",
            f"{hosts} hosts cannot share a global batch of {rows} equally",
            got=f"train.global_batch: {rows}",
            need=f"a multiple of {hosts}",
            fix=f"--set train.global_batch={max(rows // hosts, 1) * hosts}",
        )


def _own_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if os.environ.get(name)}
    return kept | {name: os.path.abspath(os.environ[name]) for name in _PATHS if os.environ.get(name)}


def _given(entries: list[str]) -> dict[str, str]:
    """The variables of --env NAME=VALUE.

    Raises: HarnessError "launch-env".
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            raise HarnessError(
                "launch-env",
                "--env is NAME=VALUE",
                got=entry,
                need="such as NCCL_SOCKET_IFNAME=eth0",
                fix="--env NCCL_SOCKET_IFNAME=eth0",
            )
        if _SECRET.search(name):
            raise HarnessError(
                "launch-env",
                f"{name} is a secret by its name, and these files are no place for one",
                need="a secret of the engine",
                fix=(
                    f"export {name} where the job is submitted: Slurm, Ray and compose pass it on; in"
                    " Kubernetes --secret NAME"
                ),
            )
        found[name] = value
    return found
