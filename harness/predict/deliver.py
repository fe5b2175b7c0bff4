"""Exports a located checkpoint for another program, with its statistics, and compares actions if asked to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.artifacts import Dataset, DimensionStats, Feature, Prediction
from harness.checkpoint.expressed import Widths, check_expressed
from harness.checkpoint.locate import Located, recipe_of, recorded
from harness.checkpoint.pytorch import policy_directory
from harness.checkpoint.tensors import WEIGHTS_FILE
from harness.data.compare import first, width_without_padding
from harness.data.norm_files import read_norm_stats
from harness.errors import HarnessError
from harness.predict.lerobot_stats import read_policy_stats
from harness.recipe.schema import Data, Expert, Model, Recipe
from harness.run.directory import RunDir
from harness.run.evaluations import judgements, sentence
from harness.run.steps import ASSETS, EXPORT, NORM_STATS, PARAMS, RECORD

if TYPE_CHECKING:
    from harness.checkpoint.merge import Merging

Say = Callable[[str], None]
Stats = dict[str, DimensionStats]


class Wish(NamedTuple):
    """What is asked for: the target, the type, how many frames are compared, and where the base is now.

    `adapters` are added to the source; `alone` asks for the source's adapters without their base.
    """

    target: str
    dtype: str | None = None
    frames: int | None = None
    base: str | None = None
    adapters: tuple[Path, ...] = ()
    alone: bool = False


def deliver(
    located: Located, recipe: Recipe, destination: Path, wish: Wish, say: Say, progress: Any = None
) -> dict[str, Any]:
    """What was written to `destination`, as its harness/export.json says it.

    Raises: HarnessError "export-target-unknown", "export-dtype-unknown", "export-option-unused",
    "export-check-failed", and those of `export_for` and `open_merging`.
    """
    from harness.checkpoint.merge import open_merging
    from harness.checkpoint.targets import TARGETS, Order, export_for

    check_names(wish, TARGETS)
    wish = wish._replace(adapters=tuple(map(policy_directory, wish.adapters)))
    own = Path(wish.adapters[0]) if wish.adapters else None
    trained = _trained(located, recipe, own)
    if wish.target == "lerobot":
        check_expressed(recipe, None if wish.alone else trained.stats, trained.widths)
    if wish.alone:
        return _alone(located, recipe, destination, wish)
    opened = open_merging(located.path, merged_model(recipe.model) if own else recipe.model, base=wish.base)
    if wish.adapters:
        opened = _added(opened, wish)
    check = None
    if wish.frames is not None:
        check = _check(_locations(opened, own), recipe, trained.stats, wish, say)
    order = Order(
        wish.target,  # type: ignore[arg-type]
        recipe,
        trained.assets,
        trained.stats,
        wish.dtype,  # type: ignore[arg-type]
        facts_of(located) | ({"widths": trained.widths} if trained.widths else {}),
        check,
        progress,
    )
    return export_for(opened, destination, order)


class _Trained(NamedTuple):
    """The statistics that the weights were trained with, their directory, and the datasets' dimensions."""

    stats: Stats
    assets: Path
    widths: list[Widths] | None


def _trained(located: Located, recipe: Recipe, own: Path | None) -> _Trained:
    """Those of the adapters `own`, if they have statistics; else those of the source."""
    sources = [*([] if own is None else [Located(own, None, None)]), located]
    widths = next((known for each in sources if (known := widths_of(each, recipe))), None)
    for each in sources:
        if stats := statistics(each, recipe, widths):
            return _Trained(stats, each.path / ASSETS, widths)
    return _Trained({}, located.path / ASSETS, widths)


def _added(opened: Merging, wish: Wish) -> Merging:
    """The base with the asked adapters added."""
    from harness.checkpoint.adding import open_additions

    recipes = {each: _recipe_beside(each) for each in wish.adapters}
    return opened._replace(
        additions=open_additions(list(wish.adapters), recipes, opened.locations[0], opened.shapes)
    )


def _recipe_beside(directory: Path) -> Recipe | None:
    try:
        return recipe_of(Located(directory, None, None), None)
    except HarnessError as error:
        if error.code != "recipe-needed":
            raise
        return None


def _locations(opened: Merging, own: Path | None) -> list[Path]:
    """What a check samples from: the source, or one set of our adapters above it.

    Raises: HarnessError "check-needs-one-source".
    """
    from harness.checkpoint.adding import Additions, OwnAdapters
    from harness.checkpoint.source import find_params

    if own is None:
        return opened.locations
    sets = opened.additions.sets if isinstance(opened.additions, Additions) else []
    if len(sets) != 1 or not isinstance(sets[0], OwnAdapters):
        raise HarnessError(
            "check-needs-one-source",
            "actions of several sets of adapters, or of PEFT's, have no unmerged model to be compared with",
            got=f"{len(sets)} sets",
            need="one set of our own adapters",
            fix="leave --check out, or merge one set after the other",
        )
    return [find_params(own), *opened.locations]


def _alone(located: Located, recipe: Recipe, destination: Path, wish: Wish) -> dict[str, Any]:
    """What was written of the adapters and the other trained parameters alone."""
    from harness.checkpoint.alone import export_alone

    base = wish.base or recipe.weights.source
    return export_alone(
        located.path, destination, recipe, target=wish.target, base=base, facts=facts_of(located)
    )


def check_names(wish: Wish, targets: tuple[str, ...]) -> None:
    """Refuses a target or a type that does not exist, and options that adapters alone do not have."""
    if wish.target not in targets:
        raise HarnessError(
            "export-target-unknown",
            f"there is no target {wish.target!r}",
            got=wish.target,
            need=" or ".join(targets),
            fix="--to lerobot",
        )
    if wish.dtype not in (None, "float32", "bfloat16"):
        raise HarnessError(
            "export-dtype-unknown",
            f"weights are not written as {wish.dtype!r}",
            got=wish.dtype,
            need="float32 or bfloat16",
            fix="--dtype float32",
        )
    given = {"--dtype": wish.dtype, "--check": wish.frames, "--adapter": wish.adapters or None}
    unused = [option for option, value in given.items() if value is not None]
    if wish.alone and unused:
        raise HarnessError(
            "export-option-unused",
            "adapters alone are those of one step, as they were trained, and are compared with nothing",
            got=f"--adapters with {' and '.join(unused)}",
            need="--adapters without them",
            fix="leave them out, or leave --adapters out to merge",
        )


def _check(
    locations: list[Path], recipe: Recipe, stats: Stats, wish: Wish, say: Say
) -> Callable[[Path], dict[str, Any]]:
    """The comparison of a written directory with the source, whose actions are sampled first."""
    from harness.predict import agree

    if "actions" not in stats:
        raise HarnessError(
            "statistics-needed",
            "the check shows the model frames as in training, which needs the statistics of the actions",
            got="none in the checkpoint",
            need="a step that was saved by training",
            fix="export a step of a run, or leave --check out",
        )
    frames = agree.frames_of(recipe, stats, wish.frames or 0)
    say(f"sampling actions of the source on {len(frames.indices)} frames")
    before = agree.actions(locations, recipe.model, frames)

    def check(directory: Path) -> dict[str, Any]:
        say("sampling actions of what was written")
        written = directory / (PARAMS if wish.target == "openpi-jax" else WEIGHTS_FILE)
        after = agree.actions([written], merged_model(recipe.model), frames)
        return agree.compare_actions(before, after, frames, wish.dtype)

    return check


def merged_model(model: Model) -> Model:
    """The same model without adapters."""
    parts = {name: Expert(variant=getattr(model, name).variant) for name in ("paligemma", "action_expert")}
    return model.model_copy(update=parts)


def widths_of(located: Located, recipe: Recipe) -> list[Widths] | None:
    """Dimensions of each dataset that the step learned from, by its run or its export; None if not known."""
    written = (recorded(located.path, EXPORT) or {}).get("widths")
    parts = recipe.parts()
    try:
        if isinstance(written, list) and len(written) == len(parts):
            return [Widths(*map(int, each)) for each in written]
        found = None if located.run is None else RunDir(located.run).read(Dataset)
        if found is None or len(found.parts) != len(parts):
            return None
        pairs = zip(parts, found.parts, strict=True)
        return [_widths(part.data, one.features) for part, one in pairs]
    except (HarnessError, KeyError, TypeError, ValueError, IndexError):
        return None


def _widths(data: Data, features: Mapping[str, Feature]) -> Widths:
    return Widths(
        sum(features[name].shape[0] for name in data.state_features), features[data.actions].shape[0]
    )


def statistics(located: Located, recipe: Recipe, widths: list[Widths] | None = None) -> Stats:
    """The statistics beside the weights, without openpi's zero padding; empty if there are none.

    A mixture's have the dimensions of its widest dataset.
    Raises: HarnessError "norm-stats-invalid"; UnsafeFile.
    """
    file = located.path / ASSETS / recipe.data.asset_id / NORM_STATS
    if not file.is_file():
        return read_policy_stats(located.path, recipe.data.normalization)
    found: Stats = {}
    for key in ("actions", "state"):
        try:
            read = read_norm_stats(file, recipe.data.normalization, keys=(key,), root=located.path)  # type: ignore[arg-type]
        except HarnessError:
            # A dataset without a state has statistics of the actions alone.
            if key == "actions":
                raise
            continue
        value = read.stats[key]  # type: ignore[index]
        # A last dimension that is always 0 looks like padding.
        known = max((each.actions if key == "actions" else each.state for each in widths or []), default=0)
        found[key] = first(value, width_without_padding(value, max(known, 1)))
    return found


def facts_of(located: Located) -> dict[str, Any]:
    """What the step and its run record: step, dataset_sha256, run, evaluation."""
    record = recorded(located.path, RECORD) or {}
    data = record.get("data")
    facts: dict[str, Any] = {"step": located.step if located.step is not None else "unknown"}
    if isinstance(data, dict) and isinstance(data.get("dataset_sha256"), str):
        facts["dataset_sha256"] = data["dataset_sha256"]
    if located.run is not None:
        facts["run"] = located.run.name
        facts["evaluation"] = _evaluation(located)
    return facts


def _evaluation(located: Located) -> str | None:
    """What the simulator says of this step, and what `predict` found for it, if its run has them."""
    found = [
        f"{sentence(each)} (harness evaluate)."
        for each in judgements(located.run or Path())
        if each.setting.evaluated.kind == "checkpoint" and each.setting.evaluated.step == located.step
    ]
    # The newest of each protocol and comparison would need a table; a card has the newest.
    told = [found[-1]] if found else []
    return " ".join([*told, *filter(None, [_prediction(located)])]) or None


def _prediction(located: Located) -> str | None:
    """What `predict` found for this step, if its run has it."""
    try:
        found = RunDir(located.run or Path()).read(Prediction)
    except HarnessError:
        return None
    if found is None or found.step != located.step:
        return None
    errors = found.mean_absolute_error
    return (
        f"Mean absolute error of the predicted actions at episode {found.episode}, frame {found.frame}:"
        f" {sum(errors) / len(errors):.4g} (mean over {len(errors)} dimensions; harness predict)"
    )
