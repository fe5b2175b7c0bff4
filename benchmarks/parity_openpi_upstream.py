"""openpi's side of parity_openpi.py: its training step on given weights and batches.

    CHECKOUT/.venv/bin/python parity_openpi_upstream.py SCRATCH

openpi's own interpreter runs it. It writes upstream.json.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Given:
    """A loader of weights, as upstream has them: these."""

    file: Path

    def load(self, params: Any) -> Any:
        from flax import traverse_util

        stored = np.load(self.file)
        shapes = traverse_util.flatten_dict(params, sep="/")
        return traverse_util.unflatten_dict(
            {path: stored[path].astype(struct.dtype) for path, struct in shapes.items()}, sep="/"
        )


def main() -> None:
    scratch = Path(sys.argv[1])
    job = json.loads((scratch / "job.json").read_text())
    entry = _entry()
    importlib.import_module("openpi.training.checkpoints")
    _adapters(job["rank"])
    job["train"] = {
        name: value for name, value in job["train"].items() if value is not None or name == "ema_decay"
    }
    config = dataclasses.replace(entry.config_of(job), weight_loader=Given(scratch / "weights.npz"))
    entry.check_count(job, config)
    if not job["augment"]:
        _without_augmentation()
    sys.path.insert(0, str(entry.checkout() / "scripts"))
    rows = steps(importlib.import_module("train"), config, scratch, job["steps"])
    import jax

    (scratch / "upstream.json").write_text(json.dumps({"jax": jax.__version__, "steps": rows}))


def steps(train: Any, config: Any, scratch: Path, count: int) -> list[dict[str, float]]:
    """What upstream's own functions compute, called as its `main` calls them."""
    import jax
    from openpi.models import model
    from openpi.training import sharding

    train_rng, init_rng = jax.random.split(jax.random.key(config.seed))
    mesh = sharding.make_mesh(config.fsdp_devices)
    state, _ = train.init_train_state(config, init_rng, mesh, resume=False)
    step_once = jax.jit(functools.partial(train.train_step, config), donate_argnums=(1,))
    rows = []
    for step in range(count):
        stored = np.load(scratch / f"batch_{step}.npz")
        images = {
            name.removeprefix("image/"): stored[name] for name in stored.files if name.startswith("image/")
        }
        present = np.ones(len(stored["state"]), bool)
        masked = next(iter(images.values()))
        batch = {
            # As upstream's LiberoInputs fills in the camera that is not there.
            "image": images | {"right_wrist_0_rgb": np.zeros_like(masked)},
            "image_mask": dict.fromkeys(images, present) | {"right_wrist_0_rgb": ~present},
            "state": stored["state"].astype(np.float32),
            "tokenized_prompt": _padded(stored["tokens"], config.model.max_token_len),
            "tokenized_prompt_mask": _padded(stored["token_mask"], config.model.max_token_len),
        }
        with sharding.set_mesh(mesh):
            state, info = step_once(
                train_rng, state, (model.Observation.from_dict(batch), stored["actions"].astype(np.float32))
            )
        rows.append({name: float(value) for name, value in info.items()})
    return rows


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, length - rows.shape[1])))


def _adapters(rank: int) -> None:
    """A variant "dummy_lora", as upstream's own are made."""
    from openpi.models import gemma, lora

    original = gemma.get_config

    def get_config(variant: str) -> Any:
        if variant != "dummy_lora":
            return original(variant)
        adapters = {name: lora.LoRAConfig(rank=rank, alpha=float(rank)) for name in ("attn", "ffn")}
        return dataclasses.replace(original("dummy"), lora_configs=adapters)

    gemma.get_config = get_config


def _without_augmentation() -> None:
    from openpi.models import model

    original = model.preprocess_observation
    model.preprocess_observation = lambda rng, observation, **options: original(
        rng, observation, **options | {"train": False}
    )


def _entry() -> Any:
    """harness/openpi/entry.py by its place: the harness is not installed here."""
    place = Path(__file__).parents[1] / "harness/openpi/entry.py"
    spec = importlib.util.spec_from_file_location("openpi_entry", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["openpi_entry"] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
