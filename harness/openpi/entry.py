"""Starts openpi's own trainer from a job file, inside openpi's environment.

It imports nothing of the harness and changes no file of openpi's.

    python harness/openpi/entry.py JOB.json [--check] [--any-commit]

`harness train --backend openpi` and `harness import openpi … --job JOB.json` write the job. This program sets
what openpi's command line cannot say: the frozen parameters, the directory of the checkpoints, and the sizes
of a tiny model. Before the first step it counts the parameters that would be trained, by shapes alone, and
compares the count with the job's; `--check` ends there. The first line on stdout is JSON. It states what will
be trained and with which software, or why nothing is trained ("refused").

Exit codes: 0 trained (or counted); 2 refused, with the reason on stderr too; else openpi's own.

Source: openpi scripts/train.py, src/openpi/training/config.py, commit 15a9616. The order of imports: openpi
issues 831 and 1019. Importing the model before the checkpoints ends the process without a message (exit code
139).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

# The variable that holds the supervisor's process id: `SUPERVISOR` of supervise/signals.py.
PARENT = "HARNESS_SUPERVISOR"
# The key under which the first line holds a refusal.
REFUSED = "refused"
# Packages that can change a number of a run. Differences from the lock are reported for all packages.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "torch",
    "lerobot",
    "datasets",
    "augmax",
    "sentencepiece",
    "wandb",
)
# Source: prctl(2), PR_SET_PDEATHSIG.
_PARENT_DEATH_SIGNAL = 1


class Refused(Exception):
    """The reason why nothing is trained, in the form of the harness's own errors."""

    def __init__(self, code: str, what: str, *, got: str, need: str, fix: str) -> None:
        super().__init__(what)
        self.said = {"code": code, "what": what, "got": got, "need": need, "fix": fix}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A filter of parameters. It selects those whose path is in `paths`."""

    paths: frozenset[str]

    def __call__(self, path: tuple[Any, ...], _: Any) -> bool:
        # An attention's own "value" is part of a name. Only a final "value" marks the array of a parameter.
        parts = [str(part) for part in path]
        return "/".join(parts[:-1] if parts[-1] == "value" else parts) in self.paths


def config_of(job: dict[str, Any]) -> Any:
    """openpi's own configuration of the job. Its checkpoints are imported before its models."""
    importlib.import_module("openpi.training.checkpoints")
    from flax import nnx

    if job.get("sizes"):
        _resize(job["sizes"])

    configs, optimizer, weight_loaders = (
        importlib.import_module(f"openpi.training.{name}")
        for name in ("config", "optimizer", "weight_loaders")
    )
    base = configs.get_config(job["config"])
    weights = job["weights"]
    replaced = {
        "model": dataclasses.replace(base.model, **job["model"]),
        "freeze_filter": Frozen(frozenset(job["frozen"])) if job["frozen"] else nnx.Nothing(),
        "lr_schedule": optimizer.CosineDecaySchedule(**job["lr_schedule"]),
        "optimizer": optimizer.AdamW(**job["optimizer"]),
        "weight_loader": (
            weight_loaders.CheckpointWeightLoader(weights) if weights else weight_loaders.NoOpWeightLoader()
        ),
        "data": dataclasses.replace(
            base.data, repo_id=job["repo_id"], assets=configs.AssetsConfig(**job["assets"])
        ),
    }
    config = dataclasses.replace(base, **job["train"], **replaced)
    return _with_directory(config, Path(job["checkpoint_dir"])) if job.get("checkpoint_dir") else config


def _with_directory(config: Any, directory: Path) -> Any:
    """The same configuration with its checkpoints in `directory`.

    Upstream puts its own name and the experiment's name below a base directory.
    """
    kind = dataclasses.make_dataclass(
        "Placed",
        [],
        bases=(type(config),),
        namespace={"checkpoint_dir": property(lambda _: directory)},
        frozen=True,
    )
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})


def _resize(sizes: dict[str, Any]) -> None:
    """Gives upstream's model the sizes that its configurations have no option for.

    It changes upstream's modules in memory, but no file.
    """
    gemma: Any = importlib.import_module("openpi.models.gemma")
    siglip: Any = importlib.import_module("openpi.models.siglip")
    tower = siglip.Module
    gemma.PALIGEMMA_VOCAB_SIZE = sizes["vocab_size"]
    siglip.Module = lambda *args, **options: tower(*args, **options | {"variant": sizes["vision"]})


def count(config: Any) -> tuple[int, int]:
    """(number of all parameters, number of parameters that openpi would train), from shapes."""
    import math

    import jax
    from flax import nnx

    shapes = jax.eval_shape(lambda: nnx.state(config.model.create(jax.random.key(0))))

    def size(state: Any) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))

    return size(shapes), size(shapes.filter(config.trainable_filter))


def checkout() -> Path:
    """The checkout that contains the imported openpi."""
    return Path(next(iter(importlib.import_module("openpi").__path__))).parents[1]


def commit_of(root: Path) -> str:
    """The commit of a checkout, or "unknown". "+modified" is appended if git finds changed files.

    Without git, or in a checkout of another owner, .git/HEAD gives the commit, and changes go unnoticed.
    """
    asked = _git(root, "rev-parse", "HEAD") or _head(root)
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    return f"{asked}+modified" if asked and changed else asked or "unknown"


def _git(root: Path, *words: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(root), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        ).stdout.strip()
    except OSError:
        return ""


def _head(root: Path) -> str:
    try:
        head = (root / ".git" / "HEAD").read_text().strip()
        return (
            (root / ".git" / head.removeprefix("ref: ")).read_text().strip()
            if head.startswith("ref: ")
            else head
        )
    except OSError:
        return ""


def check_commit(job: dict[str, Any], root: Path, *, any_commit: bool) -> str:
    """`commit_of` the checkout.

    Raises: Refused if it is not the job's commit, unless any commit is allowed.
    """
    commit = commit_of(root)
    if any_commit or (commit.startswith(job["commit"]) and not commit.endswith("+modified")):
        return commit
    raise Refused(
        "openpi-commit-differs",
        f"openpi in {root} is not at the commit that the job was made for",
        got=commit[:12] + commit[40:],
        need=job["commit"],
        fix=(
            f"git -C {shlex.quote(str(root))} checkout {shlex.quote(job['commit'])} (git stash puts changes"
            " aside); or --any-commit, which is recorded"
        ),
    )


def check_count(job: dict[str, Any], config: Any) -> tuple[int, int]:
    """The counts of `count`.

    Raises: Refused if they differ from the job's counts.
    """
    total, trained = count(config)
    if (total, trained) != (job["parameters_total"], job["parameters_trained"]):
        raise Refused(
            "openpi-trains-others",
            "openpi would train other parameters than the job means; nothing was trained",
            got=f"{trained:,} of {total:,}",
            need=f"{job['parameters_trained']:,} of {job['parameters_total']:,}",
            fix="take openpi at the job's commit, without changes to its models",
        )
    return total, trained


def software(root: Path) -> dict[str, Any]:
    """Python, packages, the lock's sha256, and how the installed packages differ from that lock."""
    import hashlib
    import tomllib

    installed = {
        _canonical(each.metadata["Name"]): each.version
        for each in metadata.distributions()
        if each.metadata["Name"]
    }
    lock = root / "uv.lock"
    locked: dict[str, set[str]] = {}
    for package in tomllib.loads(lock.read_text()).get("package", []) if lock.is_file() else []:
        locked.setdefault(_canonical(package["name"]), set()).add(str(package.get("version")))
    return {
        "python": platform.python_version(),
        "packages": {name: installed.get(name, "not installed") for name in _PACKAGES},
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
        "unlike_lock": [
            f"{name} {version} instead of {' or '.join(sorted(locked[name]))}"
            for name, version in sorted(installed.items())
            if name in locked and version not in locked[name]
        ],
    }


def _canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description="openpi's own trainer, from a job file")
    parser.add_argument("job", type=Path)
    parser.add_argument("--check", action="store_true", help="count what would be trained, and end")
    parser.add_argument("--any-commit", action="store_true", help="with whatever commit of openpi is here")
    options = parser.parse_args()
    _end_with_parent()
    job = json.loads(options.job.read_text())
    root = checkout()
    try:
        commit = check_commit(job, root, any_commit=options.any_commit)
        config = config_of(job)
        total, trained = check_count(job, config)
    except Refused as refused:
        _tell({REFUSED: refused.said})
        lines = [f"  {key}: {refused.said[key]}" for key in ("got", "need", "fix")]
        sys.stderr.write("\n".join([f"error [{refused.said['code']}] {refused.said['what']}", *lines]) + "\n")
        return 2
    counts = {"parameters_total": total, "parameters_trained": trained}
    _tell(
        {
            "commit": commit,
            **counts,
            "checkpoints": str(config.checkpoint_dir),
            "device": _device(),
            **software(root),
        }
    )
    if options.check:
        return 0
    sys.path.insert(0, str(root / "scripts"))
    importlib.import_module("train").main(config)
    return 0


def _tell(told: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


def _device() -> str:
    import jax

    return str(jax.devices()[0].device_kind)


def _end_with_parent() -> None:
    """Makes this process die with the one that `PARENT` names, if any.

    A trainer without its supervisor would hold the GPU and write into a run that somebody resumes.
    """
    # A copy of `die_with_supervisor` in harness/supervise/signals.py. openpi's interpreter finds neither the
    # harness's package nor the libraries that it imports.
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(2)


if __name__ == "__main__":
    sys.exit(main())
