"""The features of a dataset that a recipe asks for: whether they are there, and what maps those that are."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import NamedTuple

from harness.artifacts import Feature
from harness.data.rows import BOOKKEEPING
from harness.errors import HarnessError

IMAGES, NUMBERS = ("image", "video"), ("float", "int", "uint", "bool")


class Wanted(NamedTuple):
    """A recipe's `key` asks for the feature `name`, whose dtype begins with one of `kinds`. With `may_be_null` the key can say that there is none."""

    key: str
    name: str
    kinds: tuple[str, ...]
    may_be_null: bool = False


def check_features(path: Path, features: dict[str, Feature], wanted: list[Wanted]) -> None:
    """Refuses features that are not there or of the wrong kind, all of them at once, with one line that maps those that fit.

    Raises: HarnessError "dataset-feature-missing" or "dataset-feature-invalid".
    """
    lacking = [each for each in wanted if each.name not in features]
    unfit = [each for each in wanted if each.name in features and not _fits(features, each.name, each.kinds)]
    if not lacking and not unfit:
        return
    wrong = lacking + unfit
    there = dict.fromkeys(name for each in wrong for name in features if _fits(features, name, each.kinds))
    if lacking:
        code, what = "dataset-feature-missing", f"the dataset {path} has no feature {', '.join(repr(each.name) for each in lacking)}"
        got = ", ".join(there) or "no feature of that kind"
    else:
        code, what = "dataset-feature-invalid", "; ".join(f"feature {each.name!r} cannot be {each.key}" for each in unfit)
        got = ", ".join(f"{features[each.name].dtype} {features[each.name].shape}" for each in unfit)
    need = ", ".join(each.name for each in lacking) if lacking else ", ".join(dict.fromkeys(" or ".join(each.kinds) for each in unfit))
    blind = all(each.kinds == IMAGES for each in wrong) and not there and len(wrong) == sum(each.kinds == IMAGES for each in wanted)
    fix = "--dataset with a dataset that has images or videos" if blind else _mapped(features, wanted, wrong)
    raise HarnessError(code, what, got=got, need=need, fix=fix)


def _fits(features: dict[str, Feature], name: str, kinds: tuple[str, ...]) -> bool:
    """Of the right kind; numbers are a vector, and none of the columns that count rows."""
    feature = features[name]
    return feature.dtype.startswith(kinds) and (kinds != NUMBERS or (name not in BOOKKEEPING and len(feature.shape) == 1 and feature.shape[0] > 0))


def _mapped(features: dict[str, Feature], wanted: list[Wanted], wrong: list[Wanted]) -> str:
    """`--set` for every key that is wrong: the most alike of the features that no other key has; null where none is left and null will do."""
    taken = {each.name for each in wanted if each not in wrong}
    pairs = []
    for each in sorted(wrong, key=lambda one: -_likeness(features, one, taken)):
        left = [name for name in features if _fits(features, name, each.kinds) and name not in taken]
        # A state that is not there is not made of the actions.
        close = difflib.get_close_matches(each.name, left, n=1, cutoff=0.5 if each.may_be_null and each.kinds == NUMBERS else 0.0)
        chosen = close[0] if close else "null" if each.may_be_null else "FEATURE"
        taken.add(chosen)
        pairs.append((wrong.index(each), f"--set {each.key}={shlex.quote(chosen)}"))
    return " ".join(pair for _, pair in sorted(pairs))


def _likeness(features: dict[str, Feature], each: Wanted, taken: set[str]) -> float:
    """How alike the nearest name is: who has the nearest one chooses first."""
    left = [name for name in features if _fits(features, name, each.kinds) and name not in taken]
    return max((difflib.SequenceMatcher(None, each.name, name).ratio() for name in left), default=0.0)
