"""Compiles openpi's own step for a card that is not here.

It runs inside openpi's environment, where the harness is not installed. `benchmarks.openpi_compiled` starts
it and writes the questions to its stdin.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def compile_point(point: dict[str, Any], frozen: list[str], trained: int, target: str) -> None:
    """Compiles upstream's step, or what runs before it, for `target`."""
    _stand_in_for_lerobot()
    import jax
    import train as upstream  # scripts/train.py; it imports openpi
    from jax.experimental import topologies
    from openpi.training import sharding

    config = configured(point, frozen)
    devices, fsdp = point["devices"], point["fsdp"]
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=older(target), topology=f"1x1x{devices}"
    )
    mesh = topologies.make_mesh(topology, (devices // fsdp, fsdp), (sharding.BATCH_AXIS, sharding.FSDP_AXIS))
    options = {"xla_gpu_autotune_level": "0", "xla_gpu_enable_triton_gemm": "False"}
    state, state_sharding = upstream.init_train_state(config, jax.random.key(0), mesh, resume=True)
    found = sum(leaf.size for leaf in jax.tree.leaves(state.params.filter(config.trainable_filter)))
    if found != trained:
        raise SystemExit(f"upstream would train {found:,} parameters, {trained:,} were meant")
    if point["phase"] == "init":
        compile_init(upstream, config, mesh, options)
    else:
        compile_step(upstream, config, mesh, options, state, state_sharding)


def _stand_in_for_lerobot() -> None:
    """An empty module where lerobot is not installed: the data loader is imported, but not used."""
    import types

    try:
        import lerobot.common.datasets.lerobot_dataset  # noqa: F401
    except ImportError:
        for name in (
            "lerobot",
            "lerobot.common",
            "lerobot.common.datasets",
            "lerobot.common.datasets.lerobot_dataset",
        ):
            sys.modules[name] = types.ModuleType(name)


def configured(point: dict[str, Any], frozen: list[str]) -> Any:
    """Upstream's configuration of a point; `frozen` are the paths of the parameters that are not trained."""
    import dataclasses

    from flax import nnx
    from openpi.models import pi0_config
    from openpi.training import config as configs

    lora = {
        "none": (),
        "paligemma": ("paligemma",),
        "action_expert": ("action_expert",),
        "both": ("paligemma", "action_expert"),
    }[point["adapters"]]
    model = pi0_config.Pi0Config(
        pi05=True,
        action_horizon=10,
        discrete_state_input=False,
        paligemma_variant="gemma_2b_lora" if "paligemma" in lora else "gemma_2b",
        action_expert_variant="gemma_300m_lora" if "action_expert" in lora else "gemma_300m",
    )
    left_out = frozenset(frozen)

    def is_frozen(path: tuple[Any, ...], _: Any) -> bool:
        return "/".join(str(part) for part in path) in left_out

    return dataclasses.replace(
        configs.get_config("pi05_libero"),
        model=model,
        freeze_filter=is_frozen if left_out else nnx.Nothing,
        ema_decay=0.999 if point["ema"] else None,
        batch_size=point["batch"],
        fsdp_devices=point["fsdp"],
        exp_name="compiled",
    )


def compile_step(
    upstream: Any, config: Any, mesh: Any, options: dict[str, str], state: Any, state_sharding: Any
) -> None:
    """Compiles upstream's `train_step`, with descriptions in place of arrays."""
    import jax
    from openpi.training import sharding

    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    by_sample = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(sharding.DATA_AXIS))

    def placed(tree: Any, shardings: Any) -> Any:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings
        )

    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype, sharding=by_sample),
        config.model.inputs_spec(batch_size=config.batch_size),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(
        lambda rng, state, batch: upstream.train_step(config, rng, state, batch),
        in_shardings=(replicated, state_sharding, by_sample),
        out_shardings=(state_sharding, replicated),
        donate_argnums=(1,),
    )
    with sharding.set_mesh(mesh):
        arguments = (
            jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated),
            placed(state, state_sharding),
            batch,
        )
        lowered = step.trace(*arguments).lower(lowering_platforms=("cuda",))
    lowered.compile(compiler_options=options)


def compile_init(upstream: Any, config: Any, mesh: Any, options: dict[str, str]) -> None:
    """Compiles what upstream runs before the first step: the state, made from the released weights that lie
    whole on each device in float32.

    The function is local to upstream's own; it is met where that hands it to `jax.jit`, with descriptions of
    arrays in place of weights.
    """
    import jax

    jit = jax.jit
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def whole(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)

    def released(_: Any, params: Any) -> Any:
        flat = upstream.traverse_util.flatten_dict(params)
        return upstream.traverse_util.unflatten_dict(
            {path: leaf for path, leaf in flat.items() if not any("lora" in part for part in path)}
        )

    def met(function: Any, **how: Any) -> Any:
        def compile_it(rng: Any, weights: Any) -> Any:
            arguments = jax.tree.map(whole, (jax.eval_shape(lambda: rng), weights))
            jit(function, **how).trace(*arguments).lower(lowering_platforms=("cuda",)).compile(
                compiler_options=options
            )

        return compile_it

    upstream._load_weights_and_validate = released
    jax.jit = met
    try:
        upstream.init_train_state(config, jax.random.key(0), mesh, resume=False)
    finally:
        jax.jit = jit


def older(target: str) -> str:
    """A target as jaxlib 0.5.3 reads it: without the fields that came later, none of which says how much
    memory there is.
    """
    later = (
        "thread_dim_limit_",
        "device_address_bits",
        "name:",
        "driver_version",
        "runtime_version",
        "compile_time_toolkit_version",
        "dnn_version:",
    )
    return "\n".join(line for line in target.splitlines() if not line.strip().startswith(later))


if __name__ == "__main__":
    asked = json.loads(sys.stdin.read())
    compile_point(asked["point"], asked["frozen"], asked["trained"], asked["target"])
