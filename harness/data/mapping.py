"""Checks the dataset features that a recipe names, and proposes a mapping for wrong ones."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import Feature
from harness.data.columns import BOOKKEEPING
from harness.data.mending import correct
from harness.data.paths import INFO
from harness.errors import HarnessError
from harness.recipe.schema import Data

IMAGES, NUMBERS = ("image", "video"), ("float", "int", "uint", "bool")
_NEED = {IMAGES: " or ".join(IMAGES), NUMBERS: " or ".join(NUMBERS) + ", a vector: [width]"}
# Least likeness of names at which a feature is proposed as the state. Below it the proposal is null: a
# missing state is not replaced by another feature, such as the actions.
_OF_THE_SAME = 0.6
# What names of cameras have that move with a hand, and of those that see the whole scene.
_ON_WRIST = re.compile(r"wrist|gripper|palm|in_?hand|hand_?eye|(?<![a-z])hand(?![a-z])")
_OF_SCENE = re.compile(r"front|top|high|head|ego|exter|agentview|main|third|static|scene|base")
# What a camera loses that stands elsewhere: more than names that are alike can have.
_ELSEWHERE = 6.0


class Wanted(NamedTuple):
    """A recipe's `key` names the feature `name`, whose dtype begins with one of `kinds`.

    With `may_be_null` the key may also be null.
    """

    key: str
    name: str
    kinds: tuple[str, ...]
    may_be_null: bool = False


def widths_of(data: Data, features: Mapping[str, Feature]) -> dict[str, int]:
    """The numbers of dimensions of "state" and "actions"; without a state it is 0."""
    state = sum(features[name].shape[0] for name in data.state_features)
    return {"state": state, "actions": features[data.actions].shape[0]}


def check_features(path: Path, features: dict[str, Feature], wanted: list[Wanted]) -> None:
    """Refuses all missing features and all features of a wrong type in one error.

    The fix is one line that maps suitable features instead.

    Raises: HarnessError "dataset-feature-missing" or "dataset-feature-invalid".
    """
    lacking = [each for each in wanted if each.name not in features]
    unfit = [each for each in wanted if each.name in features and not _fits(features, each.name, each.kinds)]
    if not lacking and not unfit:
        return
    wrong = lacking + unfit
    there = dict.fromkeys(name for each in wrong for name in features if _fits(features, name, each.kinds))
    if lacking:
        code, what = (
            "dataset-feature-missing",
            f"the dataset {path} has no feature {', '.join(repr(each.name) for each in lacking)}",
        )
        got = ", ".join(there) or "no feature of that kind"
    else:
        code, what = (
            "dataset-feature-invalid",
            "; ".join(f"feature {each.name!r} cannot be {each.key}" for each in unfit),
        )
        got = ", ".join(f"{features[each.name].dtype} {features[each.name].shape}" for each in unfit)
    need = (
        ", ".join(each.name for each in lacking)
        if lacking
        else ", ".join(dict.fromkeys(_NEED[each.kinds] for each in unfit))
    )
    blind = (
        all(each.kinds == IMAGES for each in wrong)
        and not there
        and len(wrong) == sum(each.kinds == IMAGES for each in wanted)
    )
    fix = (
        "name a dataset that has images or videos: --set data.dataset=DIR"
        if blind
        else _mapped(features, wanted, wrong)
    )
    if fix is None or (blind and unfit):
        # No other feature can take the place. The tables may have it all the same.
        said = f"if the tables hold it, give its name, dtype and shape in {INFO}"
        fix = correct(path / INFO, f"{said}; else name another dataset: --set data.dataset=DIR")
    raise HarnessError(code, what, got=got, need=need, fix=fix)


def likely_state(features: dict[str, Feature]) -> str:
    """The feature whose name is most like a state's, or the word FEATURE where none is."""
    wanted = Wanted("data.state", "observation.state", NUMBERS)
    alike = _likenesses(features, wanted, set())
    best = max(alike, key=alike.__getitem__, default="FEATURE")
    return best if alike.get(best, 0.0) >= _OF_THE_SAME else "FEATURE"


def _fits(features: dict[str, Feature], name: str, kinds: tuple[str, ...]) -> bool:
    """True if the feature's dtype is one of `kinds`.

    Numbers must also be a vector, and not one of LeRobot's bookkeeping columns.
    """
    feature = features[name]
    return feature.dtype.startswith(kinds) and (
        kinds != NUMBERS or (name not in BOOKKEEPING and len(feature.shape) == 1 and feature.shape[0] > 0)
    )


def _mapped(features: dict[str, Feature], wanted: list[Wanted], wrong: list[Wanted]) -> str | None:
    """A `--set` for every wrong key; None if a key is left without a feature.

    Each key gets the most similar feature that no other key has. It gets null if no feature is left and null
    is allowed.
    """
    taken = {each.name for each in wanted if each not in wrong}
    names = {each: each.name for each in wanted}
    # The key with the most similar feature chooses first, and the state after the actions.
    first = {each: max(_likenesses(features, each, taken).values(), default=0.0) for each in wrong}
    for each in sorted(wrong, key=lambda one: (one.key.endswith(".state"), -first[one])):
        actions = next((names[one] for one in wanted if one.key.endswith(".actions")), "")
        alike = _likenesses(features, each, taken, actions if each.key.endswith(".state") else "")
        chosen = max(alike, key=alike.__getitem__, default=None)
        own = _likenesses(features, each, taken).get(chosen or "", 0.0)
        if chosen is None or (each.may_be_null and each.kinds == NUMBERS and own < _OF_THE_SAME):
            if not each.may_be_null:
                return None
            chosen = "null"
        taken.add(chosen)
        names[each] = chosen
    found = {}
    for each in wrong:
        # A key of several features is given as a whole.
        of_key = [names[one] for one in wanted if one.key == each.key]
        value = of_key[0] if len(of_key) == 1 else f"[{', '.join(of_key)}]"
        found[each.key] = f"--set {each.key}={shlex.quote(value)}"
    return " ".join(found.values())


def _likenesses(
    features: dict[str, Feature], each: Wanted, taken: set[str], actions: str = ""
) -> dict[str, float]:
    """Similarity of names for each suitable free feature: shared words, plus the share of equal letters.

    A camera is also held against where it stands on the robot, and a state against the name of its `actions`.
    """
    left = [name for name in features if _fits(features, name, each.kinds) and name not in taken]
    if each.kinds == IMAGES:
        left = [name for name in left if "depth" not in name.lower()]
    return {
        name: len(_words(each.name) & _words(name))
        + difflib.SequenceMatcher(None, each.name, name).ratio()
        + _standing(each.key.rpartition(".")[2], name.lower())
        + 0.5 * len(_words(actions) & _words(name))
        for name in left
    }


def _standing(camera: str, name: str) -> float:
    """What is added for `camera`, one of the model's, by where a feature's `name` says that it stands."""
    if not camera.endswith("_rgb"):
        return 0.0
    wrist = bool(_ON_WRIST.search(name))
    if camera.startswith("base"):
        return (0.5 if _OF_SCENE.search(name) else 0.0) - _ELSEWHERE * wrist
    side, other = ("left", "right") if camera.startswith("left") else ("right", "left")
    words = _words(name)
    return (side in words) - (other in words) - _ELSEWHERE * (not wrist)


def _words(name: str) -> set[str]:
    """The words of a name, without a plural's s."""
    return {word.removesuffix("s") for word in re.split(r"[^a-z0-9]+", name.lower()) if word}
