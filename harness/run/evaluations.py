"""The evaluations of a run: directories in it with a setting, and their newest verdict."""

from __future__ import annotations

from pathlib import Path

from harness.artifacts.evaluation import Evaluation
from harness.artifacts.setting import Setting
from harness.errors import HarnessError
from harness.received.files import there
from harness.run.directory import RunDir

EVALUATIONS = "evaluations"
# More directories than anybody evaluates a run into.
_MOST = 1000


def is_evaluation(path: Path) -> bool:
    """Whether the directory is that of an evaluation."""
    return there(path / Setting.FILE)


def evaluations_of(run: Path) -> list[RunDir]:
    """The evaluations in a run's directory that were judged, the newest last. Links are not followed."""
    found = []
    try:
        entries = sorted((run / EVALUATIONS).iterdir())[:_MOST] if _is_own(run / EVALUATIONS) else []
        for path in entries:
            if _is_own(path) and there(path / Evaluation.FILE):
                found.append(((path / Evaluation.FILE).lstat().st_mtime, path))
    except OSError:
        return []
    return [RunDir(path) for _, path in sorted(found)]


def name_of(path: Path) -> str:
    """The name of an evaluation, with that of the run that it is of."""
    path = path.absolute()
    return f"{path.parents[1].name} {path.name}" if path.parent.name == EVALUATIONS else path.name


def judgements(run: Path) -> list[Evaluation]:
    """The evaluations of a run that can be read, the newest last."""
    found = []
    for directory in evaluations_of(run):
        try:
            each = directory.read(Evaluation)
        except (HarnessError, OSError):
            continue
        found += [] if each is None else [each]
    return found


def _is_own(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def sentence(evaluation: Evaluation) -> str:
    """An evaluation in one sentence, for a model card or a status."""
    setting, total = evaluation.setting, evaluation.all
    suites = ", ".join(
        f"{each.suite} {100 * each.rate:.1f} %" for each in evaluation.suites if each.rate is not None
    )
    rate = (
        "no episode was measured"
        if total.rate is None
        else f"success {100 * total.rate:.1f} % of {total.measured:,} episodes in the simulator, 95 %"
        f" interval {100 * total.interval.low:.1f} to {100 * total.interval.high:.1f}"
    )
    version = "" if setting.protocol.version is None else f" version {setting.protocol.version}"
    unmeasured = total.errors + total.missing
    parts = [
        f"{rate}{f' ({suites})' if len(evaluation.suites) > 1 and suites else ''}",
        f"protocol {setting.protocol.name}{version}",
        *([f"{unmeasured:,} episodes not measured"] if unmeasured else []),
        *([f"deviations: {'; '.join(setting.deviations)}"] if setting.deviations else []),
        *(
            [f"{evaluation.verdict} against {evaluation.against.name}"]
            if evaluation.verdict and evaluation.against
            else []
        ),
    ]
    return "; ".join(parts)
