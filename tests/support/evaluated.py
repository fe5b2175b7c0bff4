"""Evaluations for tests, made with the artifacts' own classes: settings, episodes of known truth, files."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.artifacts.dataset import DimensionStats
from harness.artifacts.episodes import EPISODES, Episode, EpisodeError, Key
from harness.artifacts.setting import Asked, Evaluated, Protocol, Setting
from harness.evaluate.claims import CLAIMS, OPENPI, OPENPI_PROTOCOL
from harness.evaluate.schedule import asked, keys
from harness.recipe.load import load_recipe
from harness.run.directory import RunDir

FOUR = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
Rates = Mapping[str, float] | float


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def setting(what: Asked | None = None, **changes: Any) -> Setting:
    """The setting of a checkpoint in openpi's protocol. `evaluated`, `protocol`: mappings of changes."""
    recipe = load_recipe("pi05_libero")
    policy: dict[str, Any] = {
        "kind": "checkpoint",
        "name": "runs/pi05_libero-001 step 29999",
        "sha256": "c" * 64,
        "step": 29_999,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": recipe.sha256(),
        "data_sha256": ["d" * 64],
        "statistics": {"state": stats(8), "actions": stats(7)},
        "statistics_sha256": "5" * 64,
        "action_horizon": 10,
        "sampling_steps": 10,
    } | changes.pop("evaluated", {})
    protocol = OPENPI_PROTOCOL.model_dump() | {"version": 1} | changes.pop("protocol", {})
    values: dict[str, Any] = {
        "evaluated": Evaluated(**policy),
        "protocol": Protocol(**protocol),
        "versions": {"mujoco": "3.2.3", "robosuite": "1.4.1", "numpy": "2.4.6"},
        "renderer": "mesa",
        "scenes_sha256": "a" * 64,
        "asked": what or asked(FOUR),
    }
    return Setting(**(values | changes))


def stats(dimensions: int, moved: float = 0.0) -> DimensionStats:
    return DimensionStats(
        mean=[0.0] * dimensions,
        std=[1.0] * dimensions,
        q01=[-1.0 - moved] + [-1.0] * (dimensions - 1),
        q99=[1.0] * dimensions,
    )


def scene_of(key: Key) -> str:
    """The scene of an episode's number: the same for everyone who places the fixtures the same way."""
    return digest("scene", key.suite, key.task, key.episode)


_hashes: dict[int, tuple[Setting, str]] = {}


def _sha256(of: Setting) -> str:
    """The setting's hash, computed once: thousands of lines have it."""
    if id(of) not in _hashes:
        _hashes[id(of)] = of, of.sha256()
    return _hashes[id(of)][1]


def episode(
    key: Key, outcome: str = "success", *, of: Setting, scene: str | None = None, **changes: Any
) -> Episode:
    steps = {"success": 60 + int(digest(key)[:2], 16) // 2, "failure": 220, "error": 17}[outcome]
    error = EpisodeError(code="server-gone", what="the server closed the connection")
    values: dict[str, Any] = {
        "suite": key.suite,
        "task": key.task,
        "episode": key.episode,
        "repeat": key.repeat,
        "setting": _sha256(of),
        "initial_state": key.episode,
        "scene_sha256": scene or scene_of(key),
        "observations": [digest("seen", key, k) for k in range(3)],
        "actions_sha256": digest("actions", key),
        "outcome": outcome,
        "steps": steps,
        "error": error if outcome == "error" else None,
    }
    return Episode(**(values | changes))


def outcomes(
    what: Asked,
    rates: Rates,
    *,
    seed: int,
    likeness: float = 0.0,
    scenes: Callable[[Key], str] = scene_of,
) -> dict[Key, bool]:
    """Outcomes of known rates by suite. `likeness`: how often the scene decides, and not luck."""
    luck, found = random.Random(seed), {}
    for key in keys(what):
        rate = rates if isinstance(rates, float) else rates[key.suite]
        drawn = luck.random(), luck.random()
        hardness = int(digest("hard", scenes(key))[:12], 16) / 16**12
        found[key] = (hardness if drawn[0] < likeness else drawn[1]) < rate
    return found


def directory(path: Path, of: Setting, episodes: Iterable[Episode], tail: bytes = b"") -> RunDir:
    """The directory of an evaluation, with `tail` behind its episodes."""
    found = RunDir(path)
    path.mkdir(parents=True)
    found.write(of)
    (path / EPISODES).write_bytes(b"".join(each.line() for each in episodes) + tail)
    return found


def driven(path: Path, of: Setting, found: Mapping[Key, bool], **changes: Any) -> RunDir:
    """The directory of these outcomes."""
    return directory(
        path,
        of,
        [episode(key, "success" if good else "failure", of=of, **changes) for key, good in found.items()],
    )


CLAIMED = {suite: each.successes / each.episodes for suite, each in CLAIMS[OPENPI].suites.items()}
ALIKE = 0.5


def lower(points: float, only: str = "") -> dict[str, float]:
    return {suite: rate - points / 100 * (not only or suite == only) for suite, rate in CLAIMED.items()}


def claimed(rates: Any = None, episodes: int = 50, seed: int = 1, **changes: Any) -> Any:
    def make(path: Path) -> tuple[RunDir, str]:
        what = asked(FOUR, episodes=episodes)
        return driven(path, setting(what, **changes), outcomes(what, rates or CLAIMED, seed=seed)), OPENPI

    return make


def two(ours: Any, theirs: Any, episodes: int = 50, *, changes: Any = None, scenes: Any = scene_of) -> Any:
    def make(path: Path) -> tuple[RunDir, RunDir]:
        what = asked(FOUR, episodes=episodes)
        mine, other = setting(what, **(changes or {})), setting(what)
        one = outcomes(what, ours, seed=1, likeness=ALIKE)
        found = [
            episode(key, "success" if good else "failure", of=mine, scene=scenes(key))
            for key, good in one.items()
        ]
        return (
            directory(path / "ours", mine, found),
            driven(path / "theirs", other, outcomes(what, theirs, seed=2, likeness=ALIKE)),
        )

    return make
