"""Placement of the run's dataset, tokenizer, statistics and weights where openpi's trainer looks for them.

The trainer itself fetches nothing.

    <run>/openpi/job.json                                   the job of `openpi_entry`
    <run>/openpi/assets/<asset_id>/norm_stats.json          our statistics in its format
    <run>/openpi/lerobot/<repo_id>                          a link to the dataset
    <run>/openpi/home/big_vision/paligemma_tokenizer.model  the recipe's tokenizer, by upstream's name
    <run>/openpi/console.log                                everything that it wrote

Source: openpi src/openpi/shared/download.py `maybe_download`, training/config.py `create_base_config`;
lerobot at 0cf8648 constants.py.
"""

from __future__ import annotations

import ctypes.util
import json
import os
from pathlib import Path
from typing import Any

from harness.artifacts import Dataset, NormStats, Plan
from harness.data.pace import WORKERS, workers_from_environment
from harness.data.stats import to_openpi_json
from harness.data.tokenizer import load_tokenizer, tokenizer_path
from harness.download.cache import WEIGHTS, fetch_tree, is_remote
from harness.download.meter import Progress
from harness.errors import HarnessError
from harness.openpi.job import OF_THE_RUN, job_of
from harness.received.files import check_stays
from harness.received.names import below
from harness.recipe.schema import PALIGEMMA, Recipe
from harness.run.directory import RunDir, cache_root, sha256_directory, write_atomic
from harness.run.steps import ASSETS, NORM_STATS, PARAMS

FOLDER = "openpi"
JOB = "job.json"
# lerobot at the commit of upstream's lock. Source: lerobot common/datasets/lerobot_dataset.py
# `CODEBASE_VERSION`.
_FORMATS = ("v2.0", "v2.1")
_LOADER_PROCESSES = 2


def lay_out_files(
    run: RunDir,
    recipe: Recipe,
    plan: Plan,
    dataset: Dataset,
    stats: NormStats,
    weights: Path | None,
    *,
    resume: bool,
) -> dict[str, str]:
    """The environment variables that make upstream read the run's own files.

    Writes those files, the job among them.

    Raises: HarnessError "upstream-cannot", "name-leads-out", and those of the tokenizer.
    """
    _check_dataset(dataset)
    home = (run.path / FOLDER).absolute()
    # No link inside the run leads these files out of it.
    job = json.dumps(_job(run, recipe, plan, home, weights, resume=resume), indent=1) + "\n"
    write_atomic(home / JOB, job, root=run.path)
    statistics = below(home / ASSETS, recipe.data.asset_id, "data.asset_id") / NORM_STATS
    write_atomic(statistics, to_openpi_json(stats), root=run.path)
    load_tokenizer(recipe.data.tokenizer)
    write_atomic(
        home / "home" / PALIGEMMA.removeprefix("gs://"),
        tokenizer_path(recipe.data.tokenizer).read_bytes(),
        root=run.path,
    )
    check_stays((home / "lerobot" / repo_id_of(recipe)).parent, run.path)
    _link(home / "lerobot" / repo_id_of(recipe), Path(dataset.path).absolute())
    # lerobot writes a second copy of every dataset, in the form that it reads best.
    rewritten = os.environ.get("HF_DATASETS_CACHE") or str(cache_root() / "openpi" / "datasets")
    variables = {
        "OPENPI_DATA_HOME": str(home / "home"),
        "HF_LEROBOT_HOME": str(home / "lerobot"),
        "HF_DATASETS_CACHE": rewritten,
    }
    return variables | {"HF_HUB_OFFLINE": "1"} | _wandb(run)


def repo_id_of(recipe: Recipe) -> str:
    """The name by which upstream gets the dataset: the hub's, or the last part of a directory's path."""
    named = os.path.expanduser(recipe.data.dataset)
    # Of "..", too, the directory's own name. One with an "@" in it has no revision.
    return os.path.basename(os.path.abspath(named)) if os.path.isdir(named) else named.partition("@")[0]


def fetch_weights(recipe: Recipe, progress: Progress | None = None) -> tuple[Path | None, dict[str, Any]]:
    """(the directory of the weights on this machine, their origin in a manifest's words).

    Raises: HarnessError of the download.
    """
    source = recipe.weights.source
    if source is None:
        return None, {"source": "random", "seed": recipe.train.seed}
    if not is_remote(source):
        path = Path(source).absolute()
        path = path / PARAMS if (path / PARAMS).is_dir() else path
        return path, {"source": source, "files": {str(path): {"sha256": sha256_directory(path)}}}
    tree = fetch_tree(source, progress=progress, named=WEIGHTS)
    return tree.path, {
        "source": source,
        "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in tree.files.items()},
    }


def _job(
    run: RunDir, recipe: Recipe, plan: Plan, home: Path, weights: Path | None, *, resume: bool
) -> dict[str, Any]:
    assert plan.chosen is not None
    options = dict.fromkeys(OF_THE_RUN) | {
        "exp-name": run.path.absolute().name,
        "project-name": os.environ.get("WANDB_PROJECT") or "pi05-harness",
        "assets-base-dir": str(home / ASSETS),
        "checkpoint-base-dir": str(run.path.absolute()),
        "num-workers": workers_from_environment() if os.environ.get(WORKERS) else _LOADER_PROCESSES,
        "overwrite": False,
        "resume": resume,
        "wandb-enabled": os.environ.get("WANDB_MODE") != "disabled",
        "fsdp-devices": plan.chosen.levers.fsdp,
        "data.assets.assets-dir": str(home / ASSETS),
    }
    made = job_of(recipe, options, run.path.name)
    return made | {
        "repo_id": repo_id_of(recipe),
        "weights": None if weights is None else str(weights),
        "checkpoint_dir": str(run.checkpoints.absolute()),
    }


def _check_dataset(dataset: Dataset) -> None:
    if dataset.format_version not in _FORMATS:
        raise HarnessError(
            "upstream-cannot",
            "openpi's reader of datasets does not know this format",
            got=f"LeRobot {dataset.format_version}",
            need=" or ".join(_FORMATS),
            fix="the same dataset in v2.1; or --backend ours, which reads both",
        )
    videos = [name for name, feature in dataset.features.items() if feature.dtype == "video"]
    if videos and ctypes.util.find_library("avutil") is None:
        raise HarnessError(
            "upstream-cannot",
            "openpi's reader of videos needs FFmpeg's libraries, which are not here",
            got=f"{', '.join(videos)} as video",
            need="libavutil and its like, or a dataset with images",
            fix=(
                "apt-get install ffmpeg (the image has none); a dataset with images in parquet, as LIBERO's"
                " is; or --backend ours"
            ),
        )


def _wandb(run: RunDir) -> dict[str, str]:
    """wandb's variables as the harness uses it: files in the run's directory, and no prompt for a key."""
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    return {"WANDB_MODE": mode, "WANDB_DIR": str(run.path.absolute())}


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)
