"""The optional keys of a request that ask for real-time chunking, checked and turned into what a model sees.

- `rtc/previous_chunk`: numbers [R, A] in the dataset's units, as the server answered them: what is left of
  the previous chunk. Its first row is the action that is executed first after the new observation.
- `rtc/delay`: how many of these rows are executed before the new chunk is there.
- `rtc/execution_horizon`: how many actions are executed from one new chunk to the next. Without it: as many
  as the previous chunk has lost, and at least the delay.

Axes: R rows that are left, H action horizon, A dimensions of an action, S of a state, D action_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from harness.artifacts import DimensionStats
from harness.data.space import Space
from harness.data.transforms import normalize, pad_last
from harness.errors import HarnessError
from harness.received.text import one_line
from harness.recipe.schema import Recipe
from harness.serve.rtc import Previous

PREVIOUS_CHUNK, DELAY, EXECUTION_HORIZON = "rtc/previous_chunk", "rtc/delay", "rtc/execution_horizon"
KEYS = (PREVIOUS_CHUNK, DELAY, EXECUTION_HORIZON)


class Seen(NamedTuple):
    """How the model sees the actions of a checkpoint: its recipe, and the statistics beside its weights.

    `recipe` is that of one dataset. `stats` are those of the actions, without zero padding.
    """

    recipe: Recipe
    stats: DimensionStats

    @property
    def width(self) -> int:
        """A: the dimensions of an action."""
        return len(self.stats.mean or self.stats.q01)


def previous_from(request: Mapping[str, Any], seen: Seen, state: np.ndarray | None = None) -> Previous | None:
    """What the request says of the previous chunk, for one row; None if it says nothing.

    The chunk is taken to the model's units as the actions of a training sample are: adapted, relative
    dimensions less the new `state`, normalized. `state` [S] is the request's own, in the dataset's units; it
    is needed if actions are relative.

    Raises: HarnessError "observation-invalid" with one sentence of what, got, need and fix.
    """
    said = {key: request[key] for key in KEYS if request.get(key) is not None}
    if not said:
        return None
    if PREVIOUS_CHUNK not in said:
        raise HarnessError(
            "observation-invalid",
            f"{next(iter(said))} is given without the previous chunk",
            got="no rtc/previous_chunk",
            need="all that is left of the previous chunk",
            fix=f"send {PREVIOUS_CHUNK}, or none of {', '.join(KEYS)}",
        )
    horizon = seen.recipe.model.action_horizon
    chunk = _chunk(said[PREVIOUS_CHUNK], horizon, seen.width)
    delay, execution_horizon = _counts(said, len(chunk), horizon)
    most = seen.recipe.train.most_delay
    if most and delay > most:
        raise HarnessError(
            "observation-invalid",
            f"{DELAY} is longer than any delay that this checkpoint was trained with",
            got=delay,
            need=f"at most {most} (train.action_delay.max)",
            fix=f"send a smaller {DELAY}, or none of {', '.join(KEYS)} and let the robot wait for the answer",
        )
    return Previous(_as_seen(chunk, seen, state)[None], delay, execution_horizon)


def most_delay(horizon: int, trained: int) -> int:
    """The longest delay of a whole chunk: d <= s <= H - d, and no longer than `trained`, if that is not 0."""
    return min(horizon // 2, trained or horizon)


def _chunk(value: Any, horizon: int, width: int) -> np.ndarray:
    """The rows as float64 [R, A]."""
    need = f"numbers of the shape [1 to {horizon}, {width}], in the dataset's units"
    fix = (
        f"send the rest of the last answer's actions as {PREVIOUS_CHUNK}, from the next one that is executed"
    )
    try:
        rows = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} is no array",
            got=error,
            need=need,
            fix=fix,
        ) from error
    if rows.dtype.kind not in "fiu":
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} holds no numbers",
            got=rows.dtype,
            need=need,
            fix=fix,
        )
    if rows.ndim != 2 or not 1 <= len(rows) <= horizon or rows.shape[1] != width:
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} is not a chunk of this policy",
            got=f"the shape {list(rows.shape)}",
            need=need,
            fix=fix,
        )
    rows = rows.astype(np.float64)
    if not np.isfinite(rows).all():
        row, dimension = np.argwhere(~np.isfinite(rows))[0]
        got = f"{rows[row, dimension]} in row {row}, dimension {dimension}"
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} holds a value that is not finite",
            got=got,
            need=need,
            fix=fix,
        )
    return rows


def _counts(said: Mapping[str, Any], rows: int, horizon: int) -> tuple[int, int]:
    """(delay, execution horizon) that go with so many rows, by the paper's d <= s <= H - d."""
    if DELAY not in said:
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} is given without {DELAY}",
            got=f"no {DELAY}",
            need="how many of its rows are executed before the new chunk is there",
            fix=f"send {DELAY}, for example 0 if the robot waits",
        )
    delay = _count(DELAY, said[DELAY], min(rows, horizon // 2))
    if EXECUTION_HORIZON not in said:
        return delay, max(horizon - rows, delay, 1)
    # Fewer actions between chunks than the delay: a second call would begin before the first has ended.
    # Fewer than the chunk has lost: rows would count that do not exist.
    least = max(delay, horizon - rows, 1)
    return delay, _count(EXECUTION_HORIZON, said[EXECUTION_HORIZON], horizon - delay, least)


def _count(key: str, value: Any, most: int, least: int = 0) -> int:
    """The whole number that the request gives under `key`."""
    need = f"a whole number from {least} to {most} with this chunk"
    number = np.asarray(value) if isinstance(value, int | np.integer | np.ndarray) else None
    if number is None or number.ndim or number.dtype.kind not in "iu":
        raise HarnessError(
            "observation-invalid",
            f"{key} is no whole number",
            got=one_line(repr(value)[:100]),
            need=need,
            fix=f"send {key} as an integer",
        )
    if not least <= int(number) <= most:
        raise HarnessError(
            "observation-invalid",
            f"{key} does not go with the chunk",
            got=int(number),
            need=need,
            fix=f"send {key} within this range",
        )
    return int(number)


def _as_seen(chunk: np.ndarray, seen: Seen, state: np.ndarray | None) -> np.ndarray:
    """Rows [R, A] in the dataset's units as float32 [H, D] in the model's. Rows that do not exist are 0."""
    data, model = seen.recipe.data, seen.recipe.model
    space = Space.of(data)
    if any(space.relative) and state is None:
        raise HarnessError(
            "observation-invalid",
            "actions are relative to the state, and the observation has none",
            got="no state",
            need="the state that the observation was taken at",
            fix="send the state with every observation",
        )
    states = np.zeros(0) if state is None else space.states(np.asarray(state))
    with np.errstate(over="ignore"):
        actions = normalize(space.actions(chunk, states), seen.stats, data.normalization)
    if not np.isfinite(actions).all():
        raise HarnessError(
            "observation-invalid",
            f"{PREVIOUS_CHUNK} is beyond all numbers of the model when it is normalized",
            got=f"{np.abs(chunk).max():.3g}",
            need="actions in the dataset's units",
            fix=f"send the rest of the last answer's actions as {PREVIOUS_CHUNK}, unchanged",
        )
    rows = pad_last(actions, model.action_dim)
    return np.pad(rows, [(0, model.action_horizon - len(rows)), (0, 0)])
