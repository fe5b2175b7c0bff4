"""Verification of a run: its manifest's claims against the findings here, and its steps computed again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness.artifacts import Dataset, Manifest, NormStats
from harness.artifacts.verdict import Verdict
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.find import trainer_of
from harness.recipe.load import recipe_from
from harness.run.directory import RunDir
from harness.run.watcher import Watcher
from harness.verify.again import Again
from harness.verify.binding import bound
from harness.verify.fields import (
    Found,
    changed_files,
    compare_fields,
    first_difference,
    overall,
    weights_digests,
)
from harness.verify.found import files_of, found_here
from harness.verify.initial import digests_here
from harness.verify.moved import with_moved
from harness.verify.replay import compare_metrics, recorded_metrics
from harness.verify.statistics import with_distance


def verify_run(run: RunDir, *, steps: int, start: int, device: str | None, watcher: Watcher) -> Verdict:
    """The verdict on `run` against this machine and these files, bound to its manifest.

    The run's inputs are read where they lie on this machine. They are fetched only with the user's --fetch.

    Raises: HarnessError "not-a-run", "checkpoint-missing", "metrics-missing", "metrics-invalid".
    """
    manifest = _manifest(run)
    recorded = recorded_metrics(run.metrics) if steps else {}
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
        again = RunDir(Path(scratch) / "run")
        recipe = recipe_from(
            dict(manifest.recipe),
            [f"train.steps={max(start + steps, 1)}"],
            where=f"{run.path}/{Manifest.FILE}",
        )
        trainer = trainer_of(run).with_shards(manifest.plan.levers.fsdp)
        chain = Chain(again, recipe, trains=True, trainer=trainer)
        watcher.say("reading data and statistics")
        machine = chain.machine()
        weights, lack = digests_here(manifest)
        known, dataset_sha256, why = _data(chain)
        replay = None
        if steps:
            dataset = known[0] if known else None
            again_from = Again(run, manifest, chain, machine, dataset, device, watcher)
            replay = again_from.replay(recorded, start, steps)
        remade = again.read(Manifest)
        why |= {} if lack is None else {"weights": lack}
        found = found_here(
            run, manifest, known, remade, machine, why, dataset_sha256=dataset_sha256, weights=weights
        )
    rows = with_distance(compare_fields(manifest, found), run, manifest, known[1] if known else None)
    named = first_difference(rows) or (
        replay.first if replay is not None and replay.status == "differs" else None
    )
    verdict = overall(rows, [replay.status] if replay is not None else [])
    told = Verdict(
        run=str(run.path),
        against="this machine and these files",
        fields=rows,
        replay=replay,
        verdict=verdict,
        first_difference=named,
    )
    return bound(told, run, machine, found.source_sha256)


def verify_pair(run: RunDir, other: RunDir) -> Verdict:
    """The verdict on two runs. It compares their manifests, and bit for bit the metrics of every common step.

    Raises: as `verify_run`.
    """
    a, b = _manifest(run), _manifest(other)
    recorded = {name: getattr(b, name) for name in Found._fields if name in Manifest.model_fields}
    recorded |= {
        "weights": weights_digests(b.weights),
        "leaves": b.weights.get("leaves"),
        "plan": b.plan.levers.model_dump(mode="json"),
    }
    recorded |= {"upstream": b.upstream.commit if b.upstream else None}
    rows = [
        *with_moved(compare_fields(a, Found(**recorded, files=files_of(other))), a, b),
        # The comparison asks the other run's files; this run's own may have been changed too.
        *changed_files(a, files_of(run)),
    ]
    replay = compare_metrics(
        recorded_metrics(run.metrics),
        recorded_metrics(other.metrics),
        start=0,
        tolerance=0.0,
        device=b.device,
        note="as recorded",
    )
    named = first_difference(rows) or replay.first
    return Verdict(
        run=str(run.path),
        against=str(other.path),
        fields=rows,
        replay=replay,
        verdict=overall(rows, [replay.status]),
        first_difference=named,
    )


def _manifest(run: RunDir) -> Manifest:
    found = run.read(Manifest)
    if found is None:
        raise HarnessError(
            "not-a-run",
            f"{run.path} has no {Manifest.FILE}",
            got="a directory" if run.path.is_dir() else "nothing there",
            need="the directory of a run that was started with this harness",
            fix="harness verify runs/NAME",
        )
    return found


def _data(chain: Chain) -> tuple[tuple[Dataset, NormStats] | None, str | None, dict[str, str]]:
    """(dataset and statistics as they are now, hash of the dataset's bytes, field → why it cannot be had).

    Changed bytes often cannot be read as a dataset. They can still be hashed, and their difference is what
    matters.
    """
    from harness.data.dataset import content_hash
    from harness.data.fetch import resolve
    from harness.data.paths import check_is_dataset

    try:
        dataset = chain.dataset()
        return (dataset, chain.stats(dataset)), dataset.sha256, {}
    except HarnessError as error:
        why = dict.fromkeys(("dataset", "dataset_revision", "norm_stats"), error.what)
    try:
        if chain.recipe.data.datasets is not None:
            # Their common hash has the shares in it, for which they must be read.
            return None, None, why
        path = resolve(chain.recipe.data).path
        check_is_dataset(path)
        return None, content_hash(path)[0], why
    except (HarnessError, OSError):
        return None, None, why
