"""The schema of every file of a run directory. Verbs communicate only through these files.

An unknown value is `None`, and `unknown[<field>]` says why; it is never a made-up 0. Bytes are `int`. Times
are in seconds.
"""

from harness.artifacts.base import Artifact
from harness.artifacts.calibration import (
    Calibration,
    CalibrationStage,
    CardState,
    Ceilings,
    Context,
    Latency,
    Load,
    MeasuredPlan,
    Product,
)
from harness.artifacts.checkpoint import (
    AdapterReport,
    Checkpoint,
    CheckpointItem,
    CheckpointStep,
    GroupReport,
    InterruptedSave,
    LeafReport,
    LoraReport,
    Moved,
    Movement,
)
from harness.artifacts.choice import Choice
from harness.artifacts.curve import Curve, CurveFinding
from harness.artifacts.dataset import (
    Comparison,
    Dataset,
    DegenerateDimension,
    Difference,
    DimensionStats,
    Feature,
    LeftOut,
    NormStats,
    Reach,
    Statistic,
)
from harness.artifacts.doctor import Diagnosis, Finding
from harness.artifacts.evaluation import Evaluation
from harness.artifacts.fetched import Fetched, Part
from harness.artifacts.hosts import HostReport, Hosts, Interface
from harness.artifacts.machine import Disk, Gpu, GpuProcess, Host, Machine, MigDevice
from harness.artifacts.memory import Memory
from harness.artifacts.openpi import OpenpiCommand, OptionChange
from harness.artifacts.plan import Calibrated, Candidate, Cluster, Levers, Plan
from harness.artifacts.prediction import Prediction
from harness.artifacts.profile import Profile, ProfileKernel, ProfileRow, Traced
from harness.artifacts.serving import ServeCheck, Serving, Stage
from harness.artifacts.serving_plan import ServedShape, ServingPlan
from harness.artifacts.setting import Setting
from harness.artifacts.status import Status
from harness.artifacts.training import Manifest, Metrics, Upstream, Used
from harness.artifacts.verdict import Compared, Replay, Verdict, Verifier

__all__ = [
    "AdapterReport",
    "Artifact",
    "Calibrated",
    "Calibration",
    "CalibrationStage",
    "Candidate",
    "CardState",
    "Ceilings",
    "Checkpoint",
    "CheckpointItem",
    "CheckpointStep",
    "Choice",
    "Cluster",
    "Compared",
    "Comparison",
    "Context",
    "Curve",
    "CurveFinding",
    "Dataset",
    "DegenerateDimension",
    "Diagnosis",
    "Difference",
    "DimensionStats",
    "Disk",
    "Evaluation",
    "Feature",
    "Fetched",
    "Finding",
    "Gpu",
    "GpuProcess",
    "GroupReport",
    "Host",
    "HostReport",
    "Hosts",
    "Interface",
    "InterruptedSave",
    "Latency",
    "LeafReport",
    "LeftOut",
    "Levers",
    "Load",
    "LoraReport",
    "Machine",
    "Manifest",
    "MeasuredPlan",
    "Memory",
    "Metrics",
    "MigDevice",
    "Moved",
    "Movement",
    "NormStats",
    "OpenpiCommand",
    "OptionChange",
    "Part",
    "Plan",
    "Prediction",
    "Product",
    "Profile",
    "ProfileKernel",
    "ProfileRow",
    "Reach",
    "Replay",
    "ServeCheck",
    "ServedShape",
    "Serving",
    "ServingPlan",
    "Setting",
    "Stage",
    "Statistic",
    "Status",
    "Traced",
    "Upstream",
    "Used",
    "Verdict",
    "Verifier",
]
