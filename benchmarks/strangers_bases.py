"""The inputs before they are spoiled, as their honest makers left them. Part of `benchmarks.strangers`.

They are a trained run, checkpoints, datasets, logs, recipes and statistics.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.strangers_files import gzipped

LORA = [f"--set=model.{expert}.lora={{rank: 2, alpha: 2.0}}" for expert in ("paligemma", "action_expert")]
DATA = [
    "data.state=observation.state",
    "data.actions=action",
    "data.cameras={base_0_rgb: cam, left_wrist_0_rgb: null, right_wrist_0_rgb: null}",
]
COMMANDS = [
    "pi05_libero --exp-name=x --fsdp-devices 2",
    (
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 uv run scripts/train.py pi05_libero --exp-name=my --overwrite"
        " --batch-size 32"
    ),
    (
        "torchrun --standalone --nnodes=1 --nproc_per_node=2 scripts/train_pytorch.py pi05_libero --exp_name"
        " t 2>&1 | tee log.txt"
    ),
    "lerobot-train --policy.type=pi05 --dataset.repo_id=a/b --batch_size=8 --steps=100 &",
    "pi05_libero --weight-loader.params-path /x --model.paligemma-variant gemma_2b_lora --no-wandb-enabled",
]


class Bases:
    """The honest inputs below one directory; made once, in about two minutes, and used again when they are
    there.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.run, self.checkpoints, self.datasets = (
            self.root / "run",
            self.root / "checkpoints",
            self.root / "datasets",
        )
        self.logs, self.recipes, self.stats = self.root / "logs", self.root / "recipes", self.root / "stats"
        self.small = self.root / "small.yaml"

    def make(self) -> None:
        """Makes what is not there. A directory that was made to its end is marked."""
        if (self.root / "whole").is_file():
            return
        if self.root.is_dir() and any(self.root.iterdir()):
            raise SystemExit(
                f"{self.root} is not empty, and no directory that this program has made to its end; give"
                " another --base"
            )
        self.root.mkdir(parents=True, exist_ok=True)
        self._train()
        self._checkpoints()
        self._datasets()
        self._texts()
        self._compile()
        (self.root / "whole").touch()

    def _train(self) -> None:
        small = [
            "model.image_size=56",
            "data.augment=false",
            "train.save_every_steps=3",
            "train.trained=lora",
        ]
        _harness(
            self.root,
            "train",
            "--recipe",
            "smoke",
            "--steps",
            "3",
            "--run",
            str(self.run),
            *(f"--set={key}" for key in small),
            *LORA,
        )
        _harness(self.root, "verify", str(self.run), "--steps", "0", good=(0, 1))
        shutil.rmtree(self.run / "wandb", ignore_errors=True)

    def _compile(self) -> None:
        """Asks the compiler what the doctor would: its answers are kept in the cache, and no case asks
        again.
        """
        _harness(
            self.root,
            "doctor",
            "--recipe",
            str(self.small),
            "--dataset",
            str(self.datasets / "v21"),
            good=(0, 1),
        )

    def _checkpoints(self) -> None:
        import numpy as np

        from benchmarks.strangers_ocdbt import write_template
        from tests.support.item_writer import write_item

        shutil.copytree(self.run / "checkpoints" / "3", self.checkpoints / "step" / "3")
        arrays = {
            "params/a/value": np.arange(12, dtype=np.float32).reshape(3, 4),
            "params/b/value": np.ones(5, np.float32),
        }
        for name, zarr3 in (("zarr", False), ("zarr3", True)):
            write_item(self.checkpoints / name / "7" / "params", arrays, zarr3=zarr3, ocdbt=False)
        write_template(self.checkpoints / "ocdbt" / "params")

    def _datasets(self) -> None:
        from tests.support import lerobot_writer

        for name, version, images in (
            ("v21", "v2.1", "parquet"),
            ("v30", "v3.0", "parquet"),
            ("video", "v2.1", "video"),
            ("video30", "v3.0", "video"),
        ):
            lerobot_writer.write(self.datasets / name, version=version, lengths=(3, 2), images=images)

    def _texts(self) -> None:
        import yaml

        from harness.recipe.load import load_recipe, shipped_recipes, to_yaml

        for folder in (self.logs, self.recipes, self.stats):
            folder.mkdir()
        self.small.write_text(to_yaml(load_recipe("smoke", DATA)))
        for name in shipped_recipes():
            (self.recipes / f"{name}.yaml").write_text(to_yaml(load_recipe(name, ["data.tokenizer=sample"])))
        shutil.copy(self.small, self.recipes)
        (self.recipes / "run.yaml").write_text(
            yaml.safe_dump(yaml.safe_load((self.run / "recipe.yaml").read_text()))
        )
        for name, text in logs().items():
            (self.logs / name).write_bytes(text.encode())
        (self.logs / "console.log.gz").write_bytes(gzipped((self.logs / "openpi.log").read_bytes()))
        shutil.copy(self.run / "metrics.jsonl", self.logs / "metrics.jsonl")
        made = _harness(
            self.root, "stats", "--json", "--recipe", str(self.small), "--dataset", str(self.datasets / "v21")
        )
        (self.stats / "norm_stats.json").write_text(
            json.dumps({"norm_stats": json.loads(made)["norm_stats"]})
        )
        moments = {name: [0.5] * 3 for name in ("mean", "std", "min", "max", "q01", "q99")} | {"count": [5]}
        (self.stats / "stats.json").write_text(
            json.dumps(
                {"observation.state": moments, "action": {name: value[:2] for name, value in moments.items()}}
            )
        )


def logs() -> dict[str, str]:
    """Logs as trainers write them: openpi's, LeRobot's, a progress bar with a logger, wandb's export, our own
    console.
    """
    rows = [
        (i * 100, 0.02 + 0.1 / (1 + i / 9), 1.2 + 0.01 * (i % 7), 5e-5 * min(1, (i + 1) / 10))
        for i in range(120)
    ]
    bar = "Progress on:  {0}.0it/5.00kit rate:1.1it/s remaining:1:01 elapsed:00:5{1} postfix:\r"
    return {
        "openpi.log": "".join(
            f"Step {s}: grad_norm={g:.4f}, loss={v:.4f}, param_norm=1802.386\n{bar.format(s, s % 10)}"
            for s, v, g, _ in rows
        ),
        "lerobot.log": "".join(
            f"INFO 2025-09-01 10:00:{s // 100 % 60:02d} ot_train.py:351 step:{s // 1000}K smpl:{s * 8}"
            f" ep:{s // 30} epch:{s / 9000:.2f} loss:{v:.3f} grdn:{g:.3f} lr:{lr:.1e} updt_s:0.412"
            " data_s:0.011\n"
            for s, v, g, lr in rows
        ),
        "pytorch.log": "".join(
            f"Training: {s // 50}%|###| {s}/12000 [01:0{s % 10}<10:00, 1.2it/s, loss={v:.4f}, lr={lr:.2e},"
            f" step={s}]\n12:00:0{s % 10}.123 [I] step={s} loss={v:.4f} lr={lr:.2e} grad_norm={g:.2f}"
            f" time=1.0s (77:train_pytorch.py:5{s % 10})\n"
            for s, v, g, lr in rows
        ),
        "wandb.csv": (
            '"Step","run - loss","run - loss__MIN","run - loss__MAX"\n'
            + "".join(f'"{s}","{v}","{v}","{v}"\n' for s, v, _, _ in rows)
        ),
        "ours.txt": "".join(
            f"step {s + 1}/12000  loss {v:.4f}  grad_norm {g:.3f}  0.44 s a step  1 min 10 s left\n"
            for s, v, g, _ in rows
        ),
    }


def _harness(scratch: Path, *args: str, good: tuple[int, ...] = (0,)) -> str:
    """What a verb prints, in a home of its own."""
    places = {"HOME": scratch / "home", "HARNESS_CACHE": scratch / "cache", "HARNESS_RUNS": scratch / "runs"}
    environ = (
        os.environ
        | {name: str(path) for name, path in places.items()}
        | {"JAX_PLATFORMS": "cpu", "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    )
    (scratch / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *args], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode not in good:
        raise SystemExit(f"harness {' '.join(args)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout
