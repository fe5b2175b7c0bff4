"""The schema of every file of a run directory. Verbs talk to each other through these and nothing else.

An unknown value is `None`, and `unknown[<field>]` says why; it is never a made-up 0. Bytes are `int`, times seconds.
"""

from harness.artifacts.base import Artifact
from harness.artifacts.checkpoint import Checkpoint, CheckpointItem, CheckpointStep, GroupReport, InterruptedSave, LoraReport
from harness.artifacts.dataset import Comparison, Dataset, DegenerateDimension, Difference, DimensionStats, Feature, NormStats, Statistic
from harness.artifacts.machine import Disk, Gpu, GpuProcess, Host, Machine, MigDevice
from harness.artifacts.plan import Candidate, Levers, Plan
from harness.artifacts.prediction import Prediction
from harness.artifacts.training import Manifest, Metrics

__all__ = [
    "Artifact",
    "Candidate",
    "Checkpoint",
    "CheckpointItem",
    "CheckpointStep",
    "Comparison",
    "Dataset",
    "DegenerateDimension",
    "Difference",
    "DimensionStats",
    "Disk",
    "Feature",
    "Gpu",
    "GpuProcess",
    "GroupReport",
    "Host",
    "InterruptedSave",
    "Levers",
    "LoraReport",
    "Machine",
    "Manifest",
    "Metrics",
    "MigDevice",
    "NormStats",
    "Plan",
    "Prediction",
    "Statistic",
]
