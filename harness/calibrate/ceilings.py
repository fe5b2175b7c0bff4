"""What a card does at best through JAX: the model's products, a copy on the card, the link to pinned memory.

Products and copies are chained in one program, so that the time to start a program is shared by all of them:
0.2 ms a call understates the smaller products threefold. Each depends on the one before, and its whole result
is carried on, so that XLA leaves none out.

It runs under the trainer's own flags: with deterministic kernels, XLA times none to choose among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from harness.artifacts import CardState, Ceilings, Context, Product
from harness.calibrate.stages import Request, Work
from harness.probe.readings import read_state
from harness.recipe.parameters import GEMMA, VISION
from harness.recipe.schema import Model

Say = Callable[[str], None]
_CALLS = 5
NOT_ALONE = "NVML's figures are of the whole card, and this is an instance of it (MIG)"
_NO_PINNED = "this device has no pinned host memory"
# A square product, as it is usually quoted.
_SQUARE = 8192
# The width of the vision tower's feed-forward layer, and the next multiple of 256 above it.
_ALIGNED = 256


def product_shapes(model: Model, rows: int, tokens: int, patches: int) -> list[tuple[int, int, int]]:
    """(m, k, n) of the model's products for `rows` samples of `tokens` and `patches` in all.

    The language model's feed-forward and query products, the vision tower's feed-forward product as it is,
    and as it would be with its width aligned.
    """
    g, v = GEMMA[model.paligemma.variant], VISION[model.vision]
    aligned = -(-v.mlp_dim // _ALIGNED) * _ALIGNED
    language = [(g.width, g.mlp_dim), (g.mlp_dim, g.width), (g.width, g.heads * g.head_dim)]
    vision = [(v.width, v.mlp_dim), (v.mlp_dim, v.width), (v.width, aligned), (aligned, v.width)]
    return [(rows * tokens, *each) for each in language] + [(rows * patches, *each) for each in vision]


def measure_ceilings(model: Model, work: Work, *, pinned: bool, say: Say) -> Ceilings:
    """The ceilings of the first device here. `pinned`: whether the host's memory may be pinned."""
    from harness.plan.operations import tokens_of

    tokens = tokens_of(model, 2, 48)
    shapes = product_shapes(model, work.rows, tokens.all, tokens.images * tokens.patches)
    shapes += [(_SQUARE, _SQUARE, _SQUARE)] if work.rows > 1 else []
    products = []
    for m, k, n in shapes:
        say(f"products of {m} x {k} x {n}")
        seconds = product_seconds(m, k, n, work.chained)
        products.append(Product(m=m, k=k, n=n, flops_per_s=2.0 * m * k * n / seconds, chained=work.chained))
    say("copies on the card")
    copied = copy_rate(work.bytes, work.chained)
    say("the link to the host")
    links, why = link_rates(work.bytes) if pinned else ((None, None, None), _NO_PINNED)
    names = ("to_host_bytes_per_s", "to_device_bytes_per_s", "both_ways_bytes_per_s")
    return Ceilings(
        products=products,
        copy_bytes_per_s=copied,
        **dict(zip(names, links, strict=True)),
        unknown=dict.fromkeys(names, why) if why else {},
    )


def product_seconds(m: int, k: int, n: int, chained: int) -> float:
    """Seconds of one bfloat16 product [m, k] x [k, n] among `chained` of them."""
    import jax
    import jax.numpy as jnp

    def step(_: Any, carried: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        a, b, _before = carried
        made = a @ b
        # Small enough that no number grows from call to call.
        return a, b.at[0, 0].set(made[0, 0] * 1e-3), made

    def run(carried: tuple[Any, Any, Any]) -> Any:
        return jax.lax.fori_loop(0, chained, step, carried)

    keys = jax.random.split(jax.random.key(0))
    a = jax.random.normal(keys[0], (m, k), jnp.bfloat16)
    b = jax.random.normal(keys[1], (k, n), jnp.bfloat16) / k**0.5
    return _donated_seconds(run, (a, b, jnp.zeros((m, n), jnp.bfloat16))) / chained


def copy_rate(size: int, chained: int) -> float:
    """Bytes a second that a kernel reads and writes together, on the card."""
    import jax
    import jax.numpy as jnp

    def step(_: Any, y: Any) -> Any:
        # Two steps must never become one kernel, which would move half of the bytes.
        return jax.lax.optimization_barrier(y * 1.0001)

    x = jnp.ones((size // 4,), jnp.float32)
    bytes_moved = 2 * x.nbytes * chained
    return bytes_moved / _donated_seconds(lambda x: jax.lax.fori_loop(0, chained, step, x), x)


def link_rates(size: int) -> tuple[tuple[float | None, float | None, float | None], str | None]:
    """((bytes a second to the host, to the device, both ways at once), why there are none)."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    device = jax.local_devices()[0]
    if "pinned_host" not in {memory.kind for memory in device.addressable_memories()}:
        return (None, None, None), _NO_PINNED
    host = SingleDeviceSharding(device, memory_kind="pinned_host")
    here = SingleDeviceSharding(device)
    x = jax.device_put(jnp.ones((size // 4,), jnp.float32), here)
    h = jax.block_until_ready(jax.device_put(x, host))

    def both(x: Any, h: Any) -> Any:
        return jax.device_put(x, host), jax.device_put(h, here)

    up = x.nbytes / _median_seconds(lambda x: jax.device_put(x, host), x)
    down = h.nbytes / _median_seconds(lambda h: jax.device_put(h, here), h)
    return (up, down, 2 * x.nbytes / _median_seconds(both, x, h)), None


def measure_context(request: Request, say: Say) -> Context:
    """The bytes of the card that are in use outside of JAX's pool, after a first product."""
    import jax
    import jax.numpy as jnp

    say("starting JAX and its pool")
    x = jnp.ones((1024, 1024), jnp.bfloat16)
    jax.block_until_ready(jax.jit(lambda x: x @ x)(x))
    return context_of(request, jax.local_devices()[0].memory_stats() or {})


def context_of(request: Request, stats: dict[str, int]) -> Context:
    """What NVML says is in use on the card since before this process, less JAX's pool."""
    pool = stats.get("pool_bytes") or stats.get("bytes_limit")
    state = CardState(unknown={"card": NOT_ALONE}) if request.index is None else read_state(request.index)
    unknown = {}
    if pool is None:
        unknown["pool_bytes"] = "JAX's allocator here has no pool"
    if state.used_bytes is None or request.used_bytes is None:
        unknown["used_bytes"] = next(iter(state.unknown.values()), "NVML did not tell it before the stage")
    if unknown:
        why = "; ".join(unknown.values())
        return Context(pool_bytes=pool, used_bytes=state.used_bytes, unknown=unknown | {"context_bytes": why})
    used = max(0, (state.used_bytes or 0) - (request.used_bytes or 0))
    if used < (pool or 0):
        why = "NVML says that less is in use than JAX's pool has"
        return Context(pool_bytes=pool, used_bytes=used, unknown={"context_bytes": why})
    return Context(pool_bytes=pool, used_bytes=used, context_bytes=used - (pool or 0))


def _donated_seconds(run: Callable[[Any], Any], state: Any) -> float:
    """Median seconds of a call that takes the last one's result and its memory, so that nothing is copied."""
    import jax

    held = [state]
    jitted = jax.jit(run, donate_argnums=0)

    def again() -> Any:
        held[0] = jitted(held[0])
        return held[0]

    return _median_seconds(again)


def _median_seconds(run: Callable[..., Any], *inputs: Any) -> float:
    """Median seconds of a call, after one that warms up: it compiles, or makes pinned memory."""
    import jax

    jax.block_until_ready(run(*inputs))
    times = []
    for _ in range(_CALLS):
        begun = time.perf_counter()
        jax.block_until_ready(run(*inputs))
        times.append(time.perf_counter() - begun)
    return median(times)
