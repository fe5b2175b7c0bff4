"""Starts openpi's own trainer from a job file, inside openpi's environment; nothing of ours is imported, and no file of openpi's is changed.

    python openpi_entry.py JOB.json [--check] [--any-commit]

`harness import openpi … --job JOB.json` writes the job. What openpi's command line cannot say is set here: which parameters are frozen. Before the
first step the parameters that would be trained are counted, by shapes alone, and compared with what the job means; `--check` ends there.
Exit codes: 0 trained (or counted); 2 refused, with the reason on stderr; else openpi's own.

Source: openpi scripts/train.py, src/openpi/training/config.py, commit 15a9616. The order of imports: openpi issues 831 and 1019, where the model
before the checkpoints ends the process without a word (exit code 139).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


class Refused(Exception):
    """What was there, what is needed, and how to mend it."""


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A filter of parameters: those whose path is in `paths`."""

    paths: frozenset[str]

    def __call__(self, path: tuple[Any, ...], _: Any) -> bool:
        # An attention's own "value" is part of a name; only a last one marks the array of a parameter.
        parts = [str(part) for part in path]
        return "/".join(parts[:-1] if parts[-1] == "value" else parts) in self.paths


def config_of(job: dict[str, Any]) -> Any:
    """openpi's own configuration of the job. Its checkpoints are imported before its models."""
    importlib.import_module("openpi.training.checkpoints")
    from flax import nnx

    configs, optimizer, weight_loaders = (importlib.import_module(f"openpi.training.{name}") for name in ("config", "optimizer", "weight_loaders"))
    base = configs.get_config(job["config"])
    weights = job["weights"]
    replaced = {
        "model": dataclasses.replace(base.model, **job["model"]),
        "freeze_filter": Frozen(frozenset(job["frozen"])) if job["frozen"] else nnx.Nothing(),
        "lr_schedule": optimizer.CosineDecaySchedule(**job["lr_schedule"]),
        "optimizer": optimizer.AdamW(**job["optimizer"]),
        "weight_loader": weight_loaders.CheckpointWeightLoader(weights) if weights else weight_loaders.NoOpWeightLoader(),
        "data": dataclasses.replace(base.data, repo_id=job["repo_id"], assets=configs.AssetsConfig(**job["assets"])),
    }
    return dataclasses.replace(base, **job["train"], **replaced)


def count(config: Any) -> tuple[int, int]:
    """(parameters in all, parameters that openpi would train), from shapes."""
    import math

    import jax
    from flax import nnx

    shapes = jax.eval_shape(lambda: nnx.state(config.model.create(jax.random.key(0))))

    def size(state: Any) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))

    return size(shapes), size(shapes.filter(config.trainable_filter))


def checkout() -> Path:
    """The checkout that the imported openpi lies in."""
    return Path(next(iter(importlib.import_module("openpi").__path__))).parents[1]


def check_commit(job: dict[str, Any], root: Path, *, any_commit: bool) -> str:
    """The commit of `root`, "unknown" where git does not tell."""
    try:
        asked = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    except OSError:
        asked = ""
    commit = asked.strip() or "unknown"
    if commit.startswith(job["commit"]) or any_commit:
        return commit
    fix = f"git -C {root} checkout {job['commit']}; or --any-commit, which is recorded"
    raise Refused(f"openpi in {root} is at commit {commit[:12]}, and the job was made for {job['commit']}\n  fix:  {fix}")


def check_count(job: dict[str, Any], config: Any) -> tuple[int, int]:
    """The counts, when they are what the job means."""
    total, trained = count(config)
    if (total, trained) != (job["parameters_total"], job["parameters_trained"]):
        raise Refused(
            f"openpi would train {trained:,} of {total:,} parameters\n  need: {job['parameters_trained']:,} of {job['parameters_total']:,}\n"
            "  fix:  make the job anew from the same commit of openpi: harness import openpi … --job FILE"
        )
    return total, trained


def main() -> int:
    parser = argparse.ArgumentParser(description="openpi's own trainer, from a job file")
    parser.add_argument("job", type=Path)
    parser.add_argument("--check", action="store_true", help="count what would be trained, and end")
    parser.add_argument("--any-commit", action="store_true", help="with whatever commit of openpi is here")
    options = parser.parse_args()
    job = json.loads(options.job.read_text())
    root = checkout()
    try:
        commit = check_commit(job, root, any_commit=options.any_commit)
        config = config_of(job)
        total, trained = check_count(job, config)
    except Refused as refused:
        sys.stderr.write(f"error [openpi-entry] {refused}\n")
        return 2
    told = {"commit": commit, "parameters_total": total, "parameters_trained": trained, "checkpoints": str(config.checkpoint_dir)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    if options.check:
        return 0
    sys.path.insert(0, str(root / "scripts"))
    importlib.import_module("train").main(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
