"""What a LeRobot policy's own pipeline shows its model: the state in the prompt, relative actions.

Source: lerobot src/lerobot/policies/pi05/processor_pi05.py, processor/relative_action_processor.py, commit
7427f31.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from harness.checkpoint.format import DAMAGE
from harness.checkpoint.pytorch import weights_location
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, UnsafeFile
from harness.received.json import read_json
from harness.recipe.schema import Recipe

PREPROCESSOR = "policy_preprocessor.json"
STATE_STEP, RELATIVE_STEP = "pi05_prepare_state_tokenizer_processor_step", "relative_actions_processor"


class Pipeline(NamedTuple):
    """Whether the prompt has the state in it, and whether actions are relative to the state."""

    state_in_prompt: bool
    relative: bool

    def __str__(self) -> str:
        state = "the state in the prompt" if self.state_in_prompt else "a prompt without the state"
        return f"{state}, {'relative' if self.relative else 'absolute'} actions"


def pipeline_of(directory: Path) -> Pipeline | None:
    """The pipeline in a policy's directory; None if there is none that can be read."""
    try:
        steps = read_json(directory / PREPROCESSOR, directory, ARTIFACT_BYTES)["steps"]
        found: dict[Any, dict[str, Any]] = {
            step.get("registry_name"): step.get("config") or {} for step in steps
        }
        state, relative = found.get(STATE_STEP), found.get(RELATIVE_STEP)
        return Pipeline(
            state is not None and state.get("include_state_in_prompt", True) is not False,
            relative is not None and relative.get("enabled") is True,
        )
    except (OSError, UnsafeFile, *DAMAGE, AttributeError):
        return None


def other_actions(path: Path, recipe: Recipe) -> str | None:
    """How the actions of the policy at `path` differ in kind from the recipe's; None if they do not.

    Whether the state stands in the prompt is not compared: openpi itself starts recipes without it from
    weights that were trained with it.
    """
    try:
        weights = weights_location(path)
    except (HarnessError, OSError):
        return None
    pipeline = None if weights is None else pipeline_of(weights.parent)
    if pipeline is None or not pipeline.relative or any(part.data.relative for part in recipe.parts()):
        return None
    return f"the policy at {path} was trained on actions relative to the state, and the recipe has none"
