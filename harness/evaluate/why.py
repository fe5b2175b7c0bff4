"""Why a rate is lower: what is known of each possible cause, from the recipe to luck, in one table."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from harness.artifacts.dataset import DimensionStats
from harness.artifacts.evaluation import Apart, Difference, Status, WhyRow
from harness.artifacts.setting import Evaluated
from harness.evaluate.claims import Claim
from harness.recipe.load import load_recipe
from harness.recipe.meaning import HEAVIEST_FIRST, changed_keys, flat, meaning

_MOST = 20
_NAMES = ("name", "description")


class Known(NamedTuple):
    """What is known of a policy's making. None: not known."""

    recipe: dict[str, Any] | None
    data_sha256: list[str] | None
    statistics: dict[Any, DimensionStats] | None


def of_policy(policy: Evaluated) -> Known:
    return Known(policy.recipe, policy.data_sha256, policy.statistics)


def of_claimed(claim: Claim) -> Known:
    """What is known of a claimed policy: the shipped recipe of its name."""
    if claim.recipe is None:
        return Known(None, None, None)
    return Known(load_recipe(claim.recipe).model_dump(mode="json"), None, None)


def why(ours: Known, theirs: Known, apart: list[Apart], difference: Difference | None) -> list[WhyRow]:
    """The rows: recipe, data, statistics, protocol and simulator, chance."""
    return [
        _recipe(ours.recipe, theirs.recipe),
        _data(ours.data_sha256, theirs.data_sha256),
        _statistics(ours.statistics, theirs.statistics),
        _protocol(apart),
        _chance(difference),
    ]


def _unknown(cause: str, one: object, what: str) -> WhyRow:
    side = "ours" if one is None else "theirs"
    return WhyRow(cause=cause, status="unknown", says=f"{side} is not known: {what}")


def _recipe(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> WhyRow:
    if ours is None or theirs is None:
        return _unknown("recipe", ours, "no manifest came with the policy")
    one, two = (
        flat({key: value for key, value in each.items() if key not in _NAMES}) for each in (theirs, ours)
    )
    changed = sorted(changed_keys(one, two), key=lambda key: HEAVIEST_FIRST.index(meaning(key).weight))
    if not changed:
        return WhyRow(cause="recipe", status="equal", says="every key is equal")
    counts = Counter(meaning(key).weight for key in changed)
    return WhyRow(
        cause="recipe",
        status="differs",
        says=f"{len(changed)} keys differ: "
        + ", ".join(f"{counts[weight]} {weight}" for weight in HEAVIEST_FIRST if counts[weight]),
        details=[
            f"{key}: {_short(two.get(key))} here, {_short(one.get(key))} there ({meaning(key).weight}:"
            f" {meaning(key).why})"
            for key in changed[:_MOST]
        ],
    )


def _data(ours: list[str] | None, theirs: list[str] | None) -> WhyRow:
    if not ours or not theirs:
        return _unknown("data", ours or None, "no hash of the data that it learned from")
    if sorted(ours) == sorted(theirs):
        return WhyRow(cause="data", status="equal", says="the same bytes")
    return WhyRow(
        cause="data",
        status="differs",
        says="other data",
        details=[f"ours {', '.join(sorted(ours))}", f"theirs {', '.join(sorted(theirs))}"],
    )


def _statistics(ours: dict[Any, DimensionStats] | None, theirs: dict[Any, DimensionStats] | None) -> WhyRow:
    """The largest difference of a quantile, as a share of their range."""
    cause = "statistics"
    if ours is None or theirs is None:
        return _unknown(cause, ours, "no statistics came with the policy")
    if ours.keys() != theirs.keys() or any(len(ours[key].q01) != len(theirs[key].q01) for key in ours):
        return WhyRow(
            cause=cause, status="differs", says="of other dimensions: another robot or another form"
        )
    found = []
    for key in ours:
        one, two = ours[key], theirs[key]
        for d in range(min(map(len, (one.q01, one.q99, two.q01, two.q99)))):
            wide = two.q99[d] - two.q01[d]
            moved = max(abs(one.q01[d] - two.q01[d]), abs(one.q99[d] - two.q99[d]))
            if moved:
                found.append((moved / wide if wide > 0 else float("inf"), f"{key}[{d}]", moved))
    if not found:
        return WhyRow(cause=cause, status="equal", says="every quantile is equal")
    found.sort(key=lambda each: -each[0])
    return WhyRow(
        cause=cause,
        status="differs",
        says=f"{len(found)} dimensions differ, {found[0][1]} most: {_share(found[0][0])}",
        details=[f"{name}: {_share(share)} ({moved:.4g})" for share, name, moved in found[:_MOST]],
    )


def _share(share: float) -> str:
    if share == float("inf"):
        return "a dimension that does not move there"
    return f"{100 * share:.3g} % of its range q01 to q99"


def _protocol(apart: list[Apart]) -> WhyRow:
    differs = [each for each in apart if each.status == "differs"]
    unknown = [each for each in apart if each.status == "unknown"]
    status: Status = "differs" if differs else "unknown" if unknown else "equal"
    says = []
    if differs:
        says.append(f"{len(differs)} differ: {', '.join(each.field for each in differs[:_MOST])}")
    if unknown:
        says.append(
            f"{len(unknown)} not known on a side: {', '.join(each.field for each in unknown[:_MOST])}"
        )
    return WhyRow(
        cause="protocol and simulator",
        status=status,
        says="; ".join(says) or "every field is equal",
        details=[
            f"{each.field}: {_short(each.ours)} here, {_short(each.theirs)} there ({each.why})"
            for each in [*differs, *unknown][:_MOST]
        ],
    )


def _chance(difference: Difference | None) -> WhyRow:
    cause = "chance"
    if difference is None:
        return WhyRow(cause=cause, status="unknown", says="no rate on both sides to compare")
    low, high = difference.interval.low, difference.interval.high
    alone = low <= 0 <= high
    words = (
        "chance alone can be the whole difference"
        if alone
        else "chance alone does not explain the difference"
    )
    return WhyRow(
        cause=cause,
        status="equal" if alone else "differs",
        says=f"{100 * difference.difference:+.2f} points, {100 * low:+.2f} to {100 * high:+.2f}: {words}",
    )


def _short(value: object) -> str:
    text = "not known" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
