"""Run directories for tests of the report, made with the artifacts' own classes, and a reader of the page."""

from __future__ import annotations

import io
import json
import math
import random
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from harness import artifacts as a
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir

MIB = 2**20
ROOT = Path(__file__).parents[2]


def manifest(recipe_name: str = "smoke", **changes: Any) -> a.Manifest:
    recipe = load_recipe(recipe_name)
    lora = recipe_name.endswith("lora")
    plan = a.Candidate(
        levers=a.Levers(
            platform="cuda" if lora else "cpu",
            microbatch=8,
            accumulation_steps=32 if lora else 1,
            prompt_tokens=48,
            cameras=["base_0_rgb", "left_wrist_0_rgb"],
        ),
        device_bytes=19_756_849_562 if lora else 187 * MIB,
        host_bytes=3 * 1024 * MIB,
        disk_bytes=40 * MIB,
        seconds_per_step=1.5 if lora else None,
        verdict="fits",
        reason="the first exact plan that fits",
        source="compiled",
        breakdown={
            "parameters": 6 * 1024 * MIB,
            "moments": 3560 * MIB,
            "gradients": 1780 * MIB,
            "activations": 5200 * MIB,
            "headroom": 2048 * MIB,
        },
    )
    values: dict[str, Any] = {
        "run": "smoke-001",
        "created": "2026-11-22T18:00:00+00:00",
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": recipe.sha256(),
        "plan": plan,
        "dataset_sha256": "d" * 64,
        "dataset_revision": None,
        "norm_stats_sha256": "5" * 64,
        "parameters_total": 3_403_421_456 if lora else 544_160,
        "parameters_trained": 466_957_072 if lora else 544_160,
        "weights": {"source": recipe.weights.source},
        "source_revision": "0a581d0f3c",
        "lock_sha256": "1" * 64,
        "image": "harness:cuda" if lora else None,
        "packages": {"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "orbax-checkpoint": "0.12.8"},
        "python": "3.11.7",
        "environment": {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"},
        "device": "NVIDIA RTX A6000" if lora else "cpu",
        "step_fingerprint": "f" * 64,
        "compiled_bytes": {"argument": 1000, "temp": 2000},
    }
    return a.Manifest.model_validate(values | changes)


def metrics(count: int, *, every: int = 1, seed: int = 0) -> list[dict[str, float]]:
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        decay = 0.03 + 0.09 * math.exp(-4 * i / max(count, 1))
        noise = math.exp(draw.gauss(0, 0.12))
        rows.append(
            {
                "step": i * every,
                "loss": decay * noise,
                "grad_norm": (0.3 + 1.2 * math.exp(-5 * i / max(count, 1))) * math.exp(draw.gauss(0, 0.25)),
                "param_norm": 1803.77,
                "learning_rate": 5e-5 * min(1.0, (i * every + 1) / 10_001),
                "step_s": 11.0 if i == 0 else 1.48 + abs(draw.gauss(0, 0.05)),
                "data_s": 0.02,
                "time": 1.79e9 + i,
            }
        )
    return rows


@cache
def picture(width: int = 672, height: int = 448) -> bytes:
    image = Image.new("RGB", (width, height))
    image.putdata(
        [((x * 255) // width, (y * 255) // height, 128) for y in range(height) for x in range(width)]
    )
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def full_run(path: Path, recipe_name: str = "smoke", rows: list[dict[str, float]] | None = None) -> RunDir:
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    host = a.Host(
        cores=16,
        ram_total_bytes=128 * 1024 * MIB,
        ram_available_bytes=100 * 1024 * MIB,
        container="docker",
        wsl=False,
    )
    gpu = a.Gpu(index=0, name="NVIDIA RTX A6000", total_bytes=51_527_024_640, free_bytes=51_010_404_352)
    stats = a.DimensionStats(mean=[0.1] * 7, std=[0.5] * 7, q01=[-1.0] * 7, q99=[1.0] * 7)
    made = manifest(recipe_name)
    run.write(made)
    run.write(a.Machine(gpus=[gpu], driver_version="560.35.03", host=host))
    run.write(
        a.Plan(
            recipe=recipe_name,
            recipe_sha256="0" * 64,
            device="NVIDIA RTX A6000",
            usable_bytes=48_000_000_000,
            parameters_total=made.parameters_total,
            parameters_trained=made.parameters_trained,
            chosen=made.plan,
            candidates=[made.plan],
        )
    )
    run.write(
        a.Dataset(
            source="sample",
            path="/data/sample",
            format_version="v2.1",
            fps=10,
            episodes=12,
            frames=1456,
            tasks=["put the bowl on the plate", "open the top drawer"],
            features={"state": a.Feature(dtype="float32", shape=[8])},
            cameras={"base_0_rgb": "image", "left_wrist_0_rgb": "wrist_image", "right_wrist_0_rgb": None},
            sha256="d" * 64,
            longest_prompt_tokens=33,
            prompt_tokens=48,
            total_bytes=5 * MIB,
        )
    )
    finding = a.DegenerateDimension(
        key="state",
        dimension=7,
        problem="q99 - q01 is 2e-7",
        largest_normalized=-3200.0,
        fix="--set data.degenerate_dimensions=pass_through",
    )
    run.write(
        a.NormStats(
            norm_stats={"state": stats, "actions": stats}, frames=1456, action_horizon=10, findings=[finding]
        )
    )
    group = a.GroupReport(
        parameters=414_803_696,
        bytes=1_659_214_784,
        arrays=23,
        dtypes=["float32"],
        trained=414_803_696,
        non_finite=0,
        norm=812.4,
    )
    run.write(
        a.Checkpoint(
            path=str(run.checkpoints),
            layout="harness",
            steps=[
                a.CheckpointStep(
                    step=1000,
                    path="1000",
                    complete=True,
                    items=[
                        a.CheckpointItem(name="params", bytes=9 * MIB),
                        a.CheckpointItem(name="train_state", bytes=9 * MIB),
                    ],
                    bytes=18 * MIB,
                )
            ],
            interrupted=[
                a.InterruptedSave(
                    path="2000.orbax-checkpoint-tmp-0",
                    step=2000,
                    missing=["params: begun, not finished"],
                    age_s=7200,
                    bytes=3 * MIB,
                    safe_to_delete=True,
                    reason="nothing was written to it for 2 h 00 min",
                )
            ],
            step=1000,
            lora=a.LoraReport(
                present=True,
                rank={"PaliGemma attention": 16, "action expert attention": 32},
                parameters=49_987_584,
            ),
            parameters={"vision": group, "language": group},
            parameters_total=829_607_392,
            ema=False,
            non_finite=0,
        )
    )
    write_metrics(run, metrics(60) if rows is None else rows)
    (path / "recipe.yaml").write_text("name: smoke\n")
    (path / "camera_views.png").write_bytes(picture())
    return run


def write_metrics(run: RunDir, rows: list[dict[str, float]]) -> None:
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """Tags, attributes that load something, and text outside of scripts and styles."""

    VOID = {"meta", "img", "br", "input", "link", "hr"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.series: dict[str, Any] = {}
        self.feed(html)
        assert self.open == [], "tags left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and data.strip().startswith("{"):
            self.series = json.loads(data)
        elif not {"script", "style"} & set(self.open):
            self.text += data


def run_without_recipe(tmp_path: Path) -> RunDir:
    """A full run that has lost its recipe.yaml."""
    made = full_run(tmp_path / "runs" / "smoke-001")
    (made.path / "recipe.yaml").unlink()
    return made
