"""Checks by metadata alone whether weights can be what a recipe starts from.

The answer comes before anything is planned, compiled or loaded. No JAX.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from harness.artifacts.checkpoint import VALUE_DTYPES
from harness.checkpoint.elsewhere import kind_of, way_on
from harness.checkpoint.files import leads_out
from harness.checkpoint.format import DAMAGE, Shapes, mismatches
from harness.checkpoint.item import read_item
from harness.checkpoint.pytorch import refuse_pytorch, weights_location
from harness.checkpoint.pytorch_names import is_pi0
from harness.checkpoint.tensors import other_dimension, tensor_leaves, weights_of_pi0
from harness.errors import HarnessError
from harness.received.files import MARK_BYTES, check_stays, there
from harness.received.json import read_json
from harness.received.text import word
from harness.recipe.parameters import parameter_shapes
from harness.recipe.schema import Recipe
from harness.run.directory import CHECKPOINTS
from harness.run.steps import (
    BASE,
    INTERRUPTED,
    METADATA,
    PARAMS,
    TRAIN_STATE,
    is_interrupted,
    is_whole,
    step_directories,
    unreadable,
)

# As long as Linux takes a path. Source: limits.h, PATH_MAX.
_LONGEST_NAME = 4096
_PUBLISHED = "--set weights.source=gs://openpi-assets/checkpoints/pi05_base/params"


class Base(NamedTuple):
    """The weights that hold what a checkpoint of only trained parameters leaves out."""

    source: str
    sha256: str


def why_not(path: Path, recipe: Recipe) -> HarnessError | None:
    """The reason why training by `recipe` cannot start from the weights at `path`; None if there is none.

    Only metadata is read. If the weights name a base, the base is read too, provided that it is on this
    machine.
    """
    wanted = parameter_shapes(recipe.model)
    try:
        found = find_params(path)
        shapes, whole = _shapes_of(found, wanted)
    except HarnessError as error:
        return error
    except OSError as error:
        return unreadable(path, error)
    # Adapters that the weights lack are initialized anew. What a remote base holds is not known here.
    needed = {
        name: shape for name, shape in wanted.items() if name in shapes or (whole and "lora" not in name)
    }
    return refusal(path, shapes, needed)


def _shapes_of(found: Path, wanted: Shapes, deepest: int = 8) -> tuple[Shapes, bool]:
    """(shape of each stored parameter, whether these are all that a model of shapes `wanted` has)."""
    if found.is_file():
        return {path: tensors.shape for path, (_, tensors) in tensor_leaves(found, wanted).items()}, True
    item = read_item(found)
    if item.leads_out:
        raise leads_out(found, item.leads_out)
    if item.problems or item.missing:
        why = "; ".join(item.problems[:3]) or f"data is missing of {len(item.missing)} arrays"
        raise damaged(found, why)
    names = parameter_names(item.arrays)
    shapes = {name: item.arrays[path].shape for path, name in names.items()}
    refuse_codes(found, {name: item.arrays[path].dtype for path, name in names.items() if name in wanted})
    base = named_base(found.parent)
    if base is None:
        return shapes, True
    if not deepest:
        raise base_circular(found)
    if not Path(base.source).is_dir():
        return shapes, False
    below, whole = _shapes_of(find_params(Path(base.source)), wanted, deepest - 1)
    return {**below, **shapes}, whole


def find_params(path: Path) -> Path:
    """The `params` directory that `path` means: `path` itself, or the one in a step directory.

    Of a PyTorch trainer's files, the file of tensors, or the index of several.

    Raises: HarnessError "weights-missing", "weights-step-needed", "checkpoint-interrupted",
    "pytorch-checkpoint", "weights-not-a-checkpoint", "file-leaves-root".
    """
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        # No file has a name of more than 255 bytes.
        if error.errno != errno.ENAMETOOLONG:
            raise
        is_directory = is_file = False
    if not is_directory:
        if is_file:
            weights = weights_location(path)
            if weights is not None:
                return weights
            refuse_pytorch(path)
        raise HarnessError(
            "weights-missing",
            f"{path} is {kind_of(path) or 'a file'}, and no weights that are read"
            if is_file
            else f"there is no directory {path}",
            need="an openpi params or step directory, a directory of safetensors, gs://… or https://…",
            fix=way_on(path)
            or f"mount it into the container, or correct weights.source, for example {_PUBLISHED}",
        )
    if any(map(is_interrupted, (path.name, path.parent.name))) or list(path.glob(f"{PARAMS}{INTERRUPTED}*")):
        raise HarnessError(
            "checkpoint-interrupted",
            f"{path} is a save that was never finished",
            need="a finished checkpoint",
            fix=f"take a finished step beside it (harness inspect {word(path.parent)} lists them)",
        )
    if (path / METADATA).is_file():
        _refuse_state(path)
        return path
    if (path / PARAMS / METADATA).is_file():
        check_stays(path / PARAMS, path)
        return path / PARAMS
    _refuse_several(path)
    weights = weights_location(path)
    if weights is not None:
        return weights
    refuse_pytorch(path)
    raise HarnessError(
        "weights-not-a-checkpoint",
        f"{path} is not an openpi checkpoint: there is no {METADATA} in it or in its {PARAMS} directory",
        got=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty directory",
        need="an Orbax params directory as openpi saves it",
        fix=way_on(path) or f"give the {PARAMS} directory of a checkpoint, for example {_PUBLISHED}",
    )


def _refuse_state(item: Path) -> None:
    """Refuses the trainer's state where the parameters of the same step lie beside it."""
    if item.name == TRAIN_STATE and (item.with_name(PARAMS) / METADATA).is_file():
        raise HarnessError(
            "weights-not-a-checkpoint",
            f"{item} is the trainer's state: optimizer and counters, not the weights of the step",
            got=TRAIN_STATE,
            need=f"the {PARAMS} beside it",
            fix=f"--set {word(f'weights.source={item.with_name(PARAMS)}')}",
        )


def _refuse_several(path: Path) -> None:
    """Refuses a run, or a directory of steps, because the step must be named."""
    for checkpoints in (path, path / CHECKPOINTS):
        steps = [path for _, path in step_directories(checkpoints) if (path / PARAMS / METADATA).is_file()]
        if steps:
            names = [step.name for step in steps]
            # Training can start from any of them, best from one whose save was finished.
            newest = ([step for step in steps if is_whole(step, "openpi")] or steps)[-1]
            raise HarnessError(
                "weights-step-needed",
                f"{path} is a {'run' if checkpoints != path else 'directory of steps'}, not one step of it",
                got=f"step {names[0]}" if len(names) == 1 else f"{len(names)} steps: {', '.join(names)}",
                need="one step directory",
                fix=f"--set {word(f'weights.source={newest}')}",
            )


def parameter_names(paths: Iterable[str]) -> dict[str, str]:
    """Path in the item → the parameter's path, without the outer "params/" and the "/value" of flax's state.

    Source: openpi src/openpi/models/model.py `restore_params`, commit 15a9616, which accepts both forms.
    """
    known = list(paths)
    suffix = "/value" if known and all(path.endswith("/value") for path in known) else ""
    return {path: path.removeprefix("params/").removesuffix(suffix) for path in known}


def refusal(source: Path | str, found: Shapes, wanted: Shapes) -> HarnessError | None:
    """The refusal of weights whose arrays are not those of a model with the shapes `wanted`, or None."""
    lines = mismatches(found, wanted)
    if not lines:
        return None
    if is_pi0({path.replace("/", "."): None for path in found}):
        return weights_of_pi0(source)
    adapters = [path for path in found if "lora" in path and path not in wanted]
    if len(adapters) == len(lines):
        step = Path(source).parent if Path(source).name == PARAMS else source
        return HarnessError(
            "weights-are-adapters",
            f"{source} is a LoRA checkpoint: {len(adapters)} of its {len(found)} arrays are adapters, and the"
            " recipe's model has none",
            got=f"adapters such as {min(adapters)}",
            need="full weights, with the adapters merged into them; or a recipe with the same adapters",
            fix=f"harness export {word(step)} OUT, then --set weights.source=OUT",
        )
    return HarnessError(
        "weights-mismatch",
        f"{source} does not hold this model's parameters: " + "; ".join(lines),
        got=f"{len(lines)} differences ({len(found)} parameters in the checkpoint)",
        need=f"the {len(wanted)} parameters of the recipe's model",
        fix=other_dimension(
            [found.get(f"action_{way}_proj/kernel", ()) for way in ("in", "out")],
            [wanted.get(f"action_{way}_proj/kernel", ()) for way in ("in", "out")],
        )
        or (
            "name weights of the same model in weights.source, or set model.* (variants, lora, vision) as"
            " they were trained"
        ),
    )


def refuse_codes(source: Path | str, dtypes: Mapping[str, str]) -> None:
    """Refuses parameters whose elements are codes or complex: without what decodes them they are no weights.

    Those of eight bits are codes too: what wrote them kept the scales elsewhere.

    `dtypes` are those of the parameters, by numpy's names.
    Raises: HarnessError "weights-mismatch".
    """
    codes = {
        path: dtype
        for path, dtype in dtypes.items()
        if not dtype.startswith(VALUE_DTYPES) or dtype.startswith("float8")
    }
    if codes:
        raise HarnessError(
            "weights-mismatch",
            f"{source} holds parameters that are no plain numbers: "
            + "; ".join(f"{path} is {dtype}" for path, dtype in sorted(codes.items())[:20]),
            got=f"{len(codes)} parameters of type {', '.join(sorted(set(codes.values())))}",
            need="parameters in float32, bfloat16, float16 or float64",
            fix="name the weights from which these were made",
        )


def named_base(step: Path) -> Base | None:
    """The base that `step` names, if it holds only what was trained; None for full weights.

    Raises: HarnessError "checkpoint-damaged" if the file that names it is damaged; UnsafeFile.
    """
    path = step / BASE
    if not there(path):
        return None
    try:
        named = read_json(path, step, MARK_BYTES)
        return Base(_text(named["source"]), _text(named["sha256"]))
    except (OSError, *DAMAGE) as error:
        raise damaged(step, f"{BASE} does not name the weights below it ({type(error).__name__})") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value or len(value) > _LONGEST_NAME:
        raise ValueError("no text")
    return value


def base_circular(found: Path) -> HarnessError:
    return HarnessError(
        "weights-base-circular",
        f"{found} holds only trained parameters, and its chain of base weights leads back to itself or"
        " never ends",
        need="a base that holds all parameters",
        fix="--base PATH of the weights that the run started from",
    )


def damaged(directory: Path, why: str) -> HarnessError:
    return HarnessError(
        "checkpoint-damaged",
        f"{directory} cannot be read: {why}",
        need="an Orbax item with its metadata and all its data files",
        fix="copy or download the checkpoint again, or take another step",
    )
