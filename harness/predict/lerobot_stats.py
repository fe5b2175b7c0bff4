"""Statistics that a LeRobot policy keeps in the files of its processors.

LeRobot divides by q99 - q01; here it is q99 - q01 + 1e-6. What is read as q99 is smaller by that, so that
numbers are normalized as that policy does, and an export writes the same file again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.artifacts import DimensionStats
from harness.checkpoint.format import DAMAGE, first_line
from harness.checkpoint.policy import PREPROCESSOR
from harness.checkpoint.safetensors import read_tensor, read_whole_header
from harness.data.norm_files import STATISTICS, checked
from harness.data.transforms import EPSILON, Normalization
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES
from harness.received.json import read_json

_NORMALIZER = "normalizer_processor"
_KEYS = {"action": "actions", "observation.state": "state"}
_MOST_BYTES = 2**20


def read_policy_stats(directory: Path, mode: Normalization) -> dict[str, DimensionStats]:
    """Statistics of actions and state, as the policy's normalizer has them; empty if it has none.

    Those that `mode` needs are checked. Another that the file lacks is an empty vector.
    Raises: HarnessError "norm-stats-invalid"; UnsafeFile.
    """
    if not (directory / PREPROCESSOR).is_file():
        return {}
    try:
        steps = read_json(directory / PREPROCESSOR, directory, ARTIFACT_BYTES)["steps"]
        names = [step.get("state_file") for step in steps if step.get("registry_name") == _NORMALIZER]
        if not names or names[0] is None:
            return {}
        return _read(directory / str(names[0]), directory, mode)
    except (OSError, *DAMAGE, AttributeError) as error:
        raise HarnessError(
            "norm-stats-invalid",
            f"{directory / PREPROCESSOR} or its statistics cannot be read: {first_line(error)}",
            need="a policy as LeRobot saves it",
            fix="copy or download the policy again",
        ) from error


def _read(file: Path, root: Path, mode: Normalization) -> dict[str, DimensionStats]:
    found: dict[str, dict[str, list[float]]] = {}
    for tensor in read_whole_header(file, root).tensors:
        feature, _, statistic = tensor.name.rpartition(".")
        if feature not in _KEYS or statistic not in STATISTICS or tensor.dtype != "F32":
            continue
        if tensor.size * 4 > _MOST_BYTES or len(tensor.shape) != 1:
            raise ValueError(f"{tensor.name} is no vector of a statistic")
        values: Any = read_tensor(tensor, file, root)
        found.setdefault(feature, {})[statistic] = values.tolist()
    return {
        _KEYS[feature]: _ours(checked(file, "LeRobot's normalizer", feature, vectors, mode))
        for feature, vectors in found.items()
    }


def _ours(stats: DimensionStats) -> DimensionStats:
    """The statistics by which this harness divides by what LeRobot divides by."""
    if not (stats.q01 and stats.q99):
        return stats
    # Where LeRobot has no range it divides by its eps, and here it is the 1e-6.
    pairs = zip(stats.q01, stats.q99, strict=True)
    return stats.model_copy(update={"q99": [max(low, high - EPSILON) for low, high in pairs]})
