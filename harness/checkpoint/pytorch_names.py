"""The table between our parameters and the tensors of π0.5 in PyTorch. One row serves both directions.

openpi's PyTorch model and LeRobot's pi05 have the same tensors; LeRobot's names begin with `model.`. A leaf
of ours with a layer axis is many tensors of theirs:

    tensor = leaf[at].transpose(axes).reshape(shape)
    leaf[at].transpose(axes) = tensor.reshape(the transposed shape)

Nothing is rounded on either way. Source: openpi examples/convert_jax_model_to_pytorch.py and
src/openpi/models_pytorch/gemma_pytorch.py, commit 15a9616; lerobot
src/lerobot/policies/pi05/modeling_pi05.py, commit 7427f31.
`benchmarks/other_models.py` compares names, shapes and actions with both programs.

Axes: L layers, N query heads, K key/value heads, D width, H head dim, F mlp dim, P patch, T image tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.recipe.parameters import EMBEDDING, GEMMA, parameter_shapes
from harness.recipe.schema import Model

Program = Literal["openpi-pytorch", "lerobot"]
Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]

PREFIX: dict[Program, str] = {"openpi-pytorch": "", "lerobot": "model."}
_BOTH = "paligemma_with_expert."
_GEMMA = f"{_BOTH}paligemma.model.language_model"
_EXPERT = f"{_BOTH}gemma_expert.model"
_VISION = f"{_BOTH}paligemma.model.vision_tower.vision_model"

# The token table has two names. The head that predicts text shares the table of PaliGemma, and no computation
# of π0.5 reads that head; what is looked up is the second. Most files hold one of the two: safetensors'
# `save_model` keeps the first by alphabet. LeRobot makes the second from the first, and loads nothing at all
# from a file that has only the second; it says so in one printed line. Its policies of transformers 5 do not
# tie the two, so training moves the second alone, and files hold both. Source:
# safetensors/bindings/python/py_src/safetensors/torch.py `_remove_duplicate_names`; lerobot modeling_pi05.py
# `from_pretrained` and `_fix_pytorch_state_dict_keys`, 0.6.1.
TABLE_NAMES = (f"{_BOTH}paligemma.lm_head.weight", f"{_GEMMA}.embed_tokens.weight")
# The text head of the action expert, [vocabulary, D]. No computation of π0.5 reads it, and our model does not
# have it. Both programs ask for it when they load, so it is written as zeros, and skipped when it is read.
UNUSED_HEAD = f"{_BOTH}gemma_expert.lm_head.weight"
# Modules that only π0 has. Source: openpi src/openpi/models_pytorch/pi0_pytorch.py, commit 15a9616.
_PI0 = {"state_proj", "action_time_mlp_in", "action_time_mlp_out"}
# The outermost modules of both.
_OUTERMOST = _PI0 | {
    "paligemma_with_expert",
    "action_in_proj",
    "action_out_proj",
    "time_mlp_in",
    "time_mlp_out",
}
# What files hold beside the weights: LeRobot's statistics before it had pipelines, and transformers' buffers.
# Source: lerobot lerobot/common/policies/normalize.py `create_stats_buffers`, commit a5727e3.
_BUFFERS = re.compile(
    r"(?:\A|\.)(?:(?:un)?normalize_(?:inputs|targets|outputs)\..+|(?:original_)?inv_freq|position_ids)\Z"
)
# What other forms of the network hold and no computation of π0.5 reads: the expert's token table, which
# openpi leaves away, and the pooling head that transformers 5.8 gives to SigLIP.
_UNREAD = re.compile(rf"{re.escape(_EXPERT)}\.embed_tokens\.weight\Z|{re.escape(_VISION)}\.head\.")
# The same modules by the names that transformers had before 4.52, and has from 5.6 on. Source: transformers
# src/transformers/models/paligemma/modeling_paligemma.py `_checkpoint_conversion_mapping`, 4.52;
# src/transformers/models/siglip/modeling_siglip.py, 5.6.
_FORMS = (
    (re.compile(r"\bpaligemma\.language_model\.model(?=\.)"), "paligemma.model.language_model"),
    (re.compile(r"\bpaligemma\.language_model\.lm_head\b"), "paligemma.lm_head"),
    (re.compile(r"\bpaligemma\.(?=(?:vision_tower|multi_modal_projector)\.)"), "paligemma.model."),
    (
        re.compile(r"\bvision_tower\.(?=(?:embeddings|encoder|post_layernorm|head)\.)"),
        "vision_tower.vision_model.",
    ),
)
# What wrappers put before all names: LeRobot's and PEFT's, DistributedDataParallel, a module with a policy.
_BEFORE = re.compile(r"\A(?:(?:model|module|policy|base_model)\.)+")
# What they put before the names of any module: torch.compile, FSDP, activation checkpointing.
_WITHIN = re.compile(r"(?:(?<=\.)|\A)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


# Side of a tile in elements, and what keeps its rows out of one set of the cache.
_TILE, _PAD = 256, 16


class Part(NamedTuple):
    """One tensor of theirs: the part of a leaf at `at`, with its `axes` exchanged, in `shape`."""

    name: str
    at: Shape
    axes: Shape
    shape: Shape


# Row: (our path, their name, axes of the transposition, whether the last axes are joined). A path with the
# layer axis L is cut by it, and "{l}" in the name is the layer. `cut`: a further axis that is cut, and the
# names that it gives.
class _Row(NamedTuple):
    path: str
    name: str
    axes: Shape
    cut: tuple[str, ...] = ()


_SAME1, _SAME2, _SWAP = (0,), (0, 1), (1, 0)
_BLOCK = "PaliGemma/img/Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_LAYERS = "PaliGemma/llm/layers"


def _rows() -> Iterator[_Row]:
    yield _Row("PaliGemma/img/embedding/kernel", f"{_VISION}.embeddings.patch_embedding.weight", (3, 2, 0, 1))
    yield _Row("PaliGemma/img/embedding/bias", f"{_VISION}.embeddings.patch_embedding.bias", _SAME1)
    # [1, T, D]: the first axis is cut like a layer axis, and its one entry is the table.
    yield _Row("PaliGemma/img/pos_embedding", f"{_VISION}.embeddings.position_embedding.weight", _SAME2)
    layer = f"{_VISION}.encoder.layers.{{l}}"
    for ours, theirs in (("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2")):
        yield _Row(f"{_BLOCK}/{ours}/scale", f"{layer}.{theirs}.weight", _SAME1)
        yield _Row(f"{_BLOCK}/{ours}/bias", f"{layer}.{theirs}.bias", _SAME1)
    for ours, theirs in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
        yield _Row(f"{_BLOCK}/MlpBlock_0/{ours}/kernel", f"{layer}.mlp.{theirs}.weight", _SWAP)
        yield _Row(f"{_BLOCK}/MlpBlock_0/{ours}/bias", f"{layer}.mlp.{theirs}.bias", _SAME1)
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        # [D, N, H] → [N·H, D]
        yield _Row(f"{_ATTENTION}/{ours}/kernel", f"{layer}.self_attn.{theirs}.weight", (1, 2, 0))
        yield _Row(f"{_ATTENTION}/{ours}/bias", f"{layer}.self_attn.{theirs}.bias", _SAME2)
    # [N, H, D] → [D, N·H]
    yield _Row(f"{_ATTENTION}/out/kernel", f"{layer}.self_attn.out_proj.weight", (2, 0, 1))
    yield _Row(f"{_ATTENTION}/out/bias", f"{layer}.self_attn.out_proj.bias", _SAME1)
    norm = "PaliGemma/img/Transformer/encoder_norm"
    yield _Row(f"{norm}/scale", f"{_VISION}.post_layernorm.weight", _SAME1)
    yield _Row(f"{norm}/bias", f"{_VISION}.post_layernorm.bias", _SAME1)
    projector = f"{_BOTH}paligemma.model.multi_modal_projector.linear"
    yield _Row("PaliGemma/img/head/kernel", f"{projector}.weight", _SWAP)
    yield _Row("PaliGemma/img/head/bias", f"{projector}.bias", _SAME1)
    yield _Row(EMBEDDING, TABLE_NAMES[0], _SAME2)
    for suffix, model in (("", _GEMMA), ("_1", _EXPERT)):
        yield from _gemma(suffix, model)
    for name in ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out"):
        yield _Row(f"{name}/kernel", f"{name}.weight", _SWAP)
        yield _Row(f"{name}/bias", f"{name}.bias", _SAME1)


def _gemma(suffix: str, model: str) -> Iterator[_Row]:
    layer = f"{model}.layers.{{l}}"
    attention, mlp = f"{_LAYERS}/attn", f"{_LAYERS}/mlp{suffix}"
    # [N, D, H] → [N·H, D]
    yield _Row(f"{attention}/q_einsum{suffix}/w", f"{layer}.self_attn.q_proj.weight", (0, 2, 1))
    yield _Row(
        f"{attention}/kv_einsum{suffix}/w",
        f"{layer}.self_attn.{{c}}.weight",
        (0, 2, 1),
        ("k_proj", "v_proj"),
    )
    # [N, H, D] → [D, N·H]
    yield _Row(f"{attention}/attn_vec_einsum{suffix}/w", f"{layer}.self_attn.o_proj.weight", (2, 0, 1))
    yield _Row(f"{mlp}/gating_einsum", f"{layer}.mlp.{{c}}.weight", _SWAP, ("gate_proj", "up_proj"))
    yield _Row(f"{mlp}/linear", f"{layer}.mlp.down_proj.weight", _SWAP)
    norms = {
        f"{_LAYERS}/pre_attention_norm{suffix}": f"{layer}.input_layernorm",
        f"{_LAYERS}/pre_ffw_norm{suffix}": f"{layer}.post_attention_layernorm",
        f"PaliGemma/llm/final_norm{suffix}": f"{model}.norm",
    }
    for ours, theirs in norms.items():
        if suffix:
            yield _Row(f"{ours}/Dense_0/kernel", f"{theirs}.dense.weight", _SWAP)
            yield _Row(f"{ours}/Dense_0/bias", f"{theirs}.dense.bias", _SAME1)
        else:
            yield _Row(f"{ours}/scale", f"{theirs}.weight", _SAME1)


ROWS: tuple[_Row, ...] = tuple(_rows())


def parts_of(shapes: Mapping[str, Shape]) -> dict[str, list[Part]]:
    """Our path → its tensors in PyTorch, without a program's prefix, of each path of `shapes` that has some.

    Each element of a leaf lies in exactly one of its tensors. Adapters have none: they are merged.
    """
    return {row.path: list(_parts(row, tuple(shapes[row.path]))) for row in ROWS if row.path in shapes}


def _parts(row: _Row, shape: Shape) -> Iterator[Part]:
    cuts = len(shape) - len(row.axes)
    for index in np.ndindex(*shape[:cuts]):
        name = row.name.format(l=index[0] if index else "", c=row.cut[index[1]] if row.cut else "")
        yield Part(name, index, row.axes, _joined(row, shape[cuts:]))


def _joined(row: _Row, shape: Shape) -> Shape:
    """The tensor's shape: of a part's axes, exchanged, the two of heads and head dim joined to one."""
    turned = tuple(shape[axis] for axis in row.axes)
    if row.axes == (3, 2, 0, 1) or len(turned) < 2:
        return turned
    if len(turned) == 3:
        # (N, H, D) for queries, keys and values; (D, N, H) for the output.
        return (turned[0], turned[1] * turned[2]) if row.axes[0] == 2 else (turned[0] * turned[1], turned[2])
    return (turned[0] * turned[1],) if row.name.endswith(".bias") else turned


def turned(leaf: Array, part: Part) -> Array:
    """The tensor `part` of `leaf`, its elements in C order: a view where nothing moves, else a copy."""
    view = leaf[part.at]
    flat = matrices(view.shape, part.axes)
    if flat is None:
        return np.ascontiguousarray(view.transpose(part.axes)).reshape(part.shape)
    out = np.empty(part.shape, leaf.dtype)
    for one, to in zip(view.reshape(flat), out.reshape(flat[0], flat[2], flat[1]), strict=True):
        transpose_into(one, to)
    return out


def put_back(tensor: Array, part: Part, leaf: Array) -> None:
    """Writes the tensor `part`, in C order and of the leaf's type, to its part in `leaf`."""
    view = leaf[part.at]
    flat = matrices(view.shape, part.axes)
    if flat is None:
        there = view.transpose(part.axes)
        there[...] = tensor.reshape(there.shape)
        return
    for one, to in zip(tensor.reshape(flat[0], flat[2], flat[1]), view.reshape(flat), strict=True):
        transpose_into(one, to)


def moves(axes: Shape) -> bool:
    """Whether the exchange of `axes` moves any element."""
    return axes != tuple(range(len(axes)))


def matrices(shape: Shape, axes: Shape) -> tuple[int, int, int] | None:
    """(matrices, rows, columns), so that the exchange of `axes` transposes each of the matrices.

    None if nothing moves, and for the small patch embedding, of which three groups of axes are exchanged.
    """
    if not moves(axes) or len(axes) > 3:
        return None
    if axes[0] == 0:
        return shape[0], shape[1], shape[2]
    return 1, math.prod(shape[: axes[0]]), math.prod(shape[axes[0] :])


def transpose_into(matrix: Array, out: Array) -> None:
    """Writes the transposed `matrix` to `out`, tile by tile, rounded to the nearest of the type of `out`.

    Rows of a power of two bytes fall into one set of the cache, so numpy's own copy of such a matrix is
    twenty times slower than the disk.
    """
    rows, columns = matrix.shape
    tile = np.empty((_TILE, _TILE + _PAD), out.dtype)
    # numpy moves the elements of a type that is not its own one by one.
    bits = np.dtype(f"u{out.dtype.itemsize}")
    seen, to = tile.view(bits), out.view(bits)
    for i in range(0, rows, _TILE):
        height = min(_TILE, rows - i)
        for j in range(0, columns, _TILE):
            width = min(_TILE, columns - j)
            tile[:height, :width] = matrix[i : i + height, j : j + width]
            to[j : j + width, i : i + height] = seen[:height, :width].T


def tensor_shapes(model: Model, program: Program) -> dict[str, Shape]:
    """Name → shape of every tensor of a file that `program` reads, in the order of our parameters."""
    prefix = PREFIX[program]
    shapes = {
        f"{prefix}{part.name}": part.shape
        for parts in parts_of(parameter_shapes(model)).values()
        for part in parts
    }
    width = GEMMA[model.action_expert.variant].width
    return shapes | {f"{prefix}{UNUSED_HEAD}": (model.vocab_size, width)}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Name without a program's or a wrapper's prefix and in its first form → name in the file.

    The token table counts once: of a file with both names it is the one that is looked up.
    Raises: ValueError if two tensors have the same plain name.
    """
    given = list(names)
    prefix = prefix_of(given)
    found: dict[str, str] = {}
    plains = {name: plain_name(name, prefix) for name in given}
    for name, own in plains.items():
        if own == TABLE_NAMES[0] and TABLE_NAMES[1] in plains.values():
            continue
        plain = TABLE_NAMES[0] if own == TABLE_NAMES[1] else own
        if plain in found:
            raise ValueError(f"two tensors are {plain}: {found[plain]} and {name}")
        found[plain] = name
    return found


def plain_name(name: str, prefix: str) -> str:
    """The name as openpi's PyTorch model has it; `prefix` is that of `prefix_of`."""
    plain = without_wrappers(name).removeprefix(prefix)
    for form, usual in _FORMS:
        plain = form.sub(usual, plain)
    return plain


def is_buffer(name: str) -> bool:
    """Whether the tensor of this name is no weight: statistics, or constants that a module makes itself."""
    return _BUFFERS.search(name) is not None


def is_unread(plain: str) -> bool:
    """Whether the tensor of this plain name is a weight that no computation of π0.5 reads."""
    return plain == UNUSED_HEAD or _UNREAD.match(plain) is not None


def without_wrappers(name: str) -> str:
    """The name without what PyTorch's and the programs' own wrappers add to it."""
    return _BEFORE.sub("", _WITHIN.sub("", name))


def prefix_of(names: Iterable[str]) -> str:
    """What stands before the network's own names, beside known wrappers: `actor.`; "" if they differ."""
    found = set()
    for name in map(without_wrappers, names):
        modules = name.split(".")
        own = next((i for i, module in enumerate(modules) if module in _OUTERMOST), None)
        if own is not None:
            found.add("".join(f"{module}." for module in modules[:own]))
    return found.pop() if len(found) == 1 else ""


def is_pi0(names: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of π0, whose state and time enter in another way than π0.5's."""
    return any(not _PI0.isdisjoint(name.split(".")) for name in names)
