"""A verification from its parts: what the run's manifest says, what is found here, and its first steps
computed once more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from harness.artifacts import Artifact, Dataset, Machine, Manifest, NormStats, Plan
from harness.artifacts.verdict import Replay, Verdict
from harness.download.cache import WEIGHTS, check_may_fetch
from harness.errors import HarnessError
from harness.flow.chain import Chain
from harness.flow.device import prepare_jax
from harness.flow.find import trainer_of
from harness.flow.trainer import Trainer
from harness.received.files import check_stays, walk
from harness.received.text import word
from harness.recipe.load import load_recipe, recipe_from
from harness.run.directory import RECIPE, RunDir, sha256_json
from harness.run.surroundings import (
    deterministic,
    environment,
    is_deterministic,
    machine_facts,
    software_here,
)
from harness.run.watcher import Watcher
from harness.verify.fields import Found, compare, first_difference, overall, weights_digests
from harness.verify.initial import digests_here
from harness.verify.replay import OTHER_DEVICE_TOLERANCE, compare_metrics, recorded_metrics

A = TypeVar("A", bound=Artifact)

# Written by harness/train/kernels.py; this module does not import JAX.
_KERNELS = "kernels.pbtxt"


def verify_run(run: RunDir, *, steps: int, start: int, device: str | None, watcher: Watcher) -> Verdict:
    """The verdict on `run` against this machine and these files.

    What the run names is read where it lies on this machine, and fetched only with the user's --fetch.
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
            replay = _replay(run, manifest, chain, machine, known, recorded, (start, steps), device, watcher)
        remade = again.read(Manifest)
        why |= {} if lack is None else {"weights": lack}
        found = _found(run, manifest, known, remade, machine, why)._replace(
            dataset_sha256=dataset_sha256, weights=weights
        )
    rows = compare(manifest, found)
    named = first_difference(rows) or (
        replay.first if replay is not None and replay.status == "differs" else None
    )
    verdict = overall(rows, [replay.status] if replay is not None else [])
    return Verdict(
        run=str(run.path),
        against="this machine and these files",
        fields=rows,
        replay=replay,
        verdict=verdict,
        first_difference=named,
    )


def verify_pair(run: RunDir, other: RunDir) -> Verdict:
    """The verdict on two runs: their manifests, and the metrics of every step that both have, bit for bit.

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
    rows = compare(a, Found(**recorded, files=_files(other)))
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
    """Dataset and statistics as they are now, the hash of the dataset's bytes, and why one of them cannot be
    had.

    Bytes that were changed often cannot be read any more; they can be hashed all the same, and that they
    differ is what matters.
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
        path = resolve(chain.recipe.data).path
        check_is_dataset(path)
        return None, content_hash(path)[0], why
    except (HarnessError, OSError):
        return None, None, why


def _replay(
    run: RunDir,
    manifest: Manifest,
    chain: Chain,
    machine: Machine,
    known: tuple[Dataset, NormStats] | None,
    recorded: dict[int, dict[str, float]],
    span: tuple[int, int],
    device: str | None,
    watcher: Watcher,
) -> Replay:
    """The steps from `span[0]` on computed again, in a process of their own, and compared."""
    (start, steps), again = span, chain.run
    assert again is not None
    try:
        if known is None:
            raise HarnessError(
                "dataset-unreadable", "the data cannot be read here", fix="give the data as it was"
            )
        check_may_fetch(chain.recipe.weights.source, WEIGHTS)
        trainer = chain.trainer.again(start)
        if start:
            _copy_step(run, again, start)
        if (run.path / _KERNELS).is_file():
            again.path.mkdir(parents=True, exist_ok=True)
            shutil.copy2(run.path / _KERNELS, again.path / _KERNELS)
        plan = _plan_as_recorded(chain, manifest, machine, known[0], device)
        again.write(plan)
        watcher.say(f"computing {steps} steps again on {plan.device}")
        _train(again, plan, trainer, machine, watcher)
    except HarnessError as error:
        if error.code == "checkpoint-missing":
            raise
        nothing = compare_metrics(recorded, {}, start=start, tolerance=0.0, device="none")
        # What has changed since it was saved is an answer, not a lack of one.
        changed = (
            {"status": "differs", "first": error.what} if error.code == "checkpoint-damaged" and start else {}
        )
        return nothing.model_copy(update={"note": str(error)} | changed)
    assert plan.chosen is not None
    remade = again.read(Manifest)
    kind = remade.device if remade is not None else manifest.device
    why_not = None if remade is None else _why_not_exact(manifest, remade)
    exact = remade is not None and why_not is None
    note = (
        "bit for bit" if exact else f"within a tolerance: {why_not or 'what it was computed on is not known'}"
    )
    computed = {step: values for step, values in recorded_metrics(again.metrics).items() if step >= start}
    return compare_metrics(
        recorded,
        computed,
        start=start,
        tolerance=0.0 if exact else OTHER_DEVICE_TOLERANCE,
        device=kind,
        note=note,
    )


def _why_not_exact(manifest: Manifest, remade: Manifest) -> str | None:
    """Why the same bits cannot be asked of this device; None when they can."""
    if remade.device != manifest.device:
        return f"another device, {remade.device} instead of {manifest.device}"
    if remade.plan.levers != manifest.plan.levers:
        return "another plan, which sums in another order"
    if manifest.plan.levers.platform == "cpu":
        was, now = (each.machine.get("processor") for each in (manifest, remade))
        return None if was == now else f"another processor, {now} instead of {was}"
    if not all(is_deterministic(each.environment) for each in (manifest, remade)):
        return "kernels that are not deterministic"
    return None if remade.kernels_sha256 == manifest.kernels_sha256 else "other kernels, chosen by timing"


def _plan_as_recorded(
    chain: Chain, manifest: Manifest, machine: Machine, dataset: Dataset, device: str | None
) -> Plan:
    """This machine's plan, carried out with the levers of the run where the platform is the same.

    Raises: HarnessError "no-gpu" and the planner's others, or "does-not-fit".
    """
    plan = chain.plan(
        machine,
        dataset,
        device=device or (None if manifest.plan.levers.platform == "cuda" else "cpu"),
        exact=True,
    )
    if plan.chosen is None:
        fix = "verify it on a machine with the memory that the run had"
        raise HarnessError(
            "does-not-fit", f"no plan fits {plan.device}: {plan.candidates[-1].reason}", fix=fix
        )
    if plan.chosen.levers.platform != manifest.plan.levers.platform:
        return plan
    return plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"levers": manifest.plan.levers})})


def _copy_step(run: RunDir, again: RunDir, step: int) -> None:
    source = run.checkpoints / str(step)
    if not source.is_dir():
        steps = (
            sorted(int(path.name) for path in run.checkpoints.iterdir() if path.name.isdigit())
            if run.checkpoints.is_dir()
            else []
        )
        raise HarnessError(
            "checkpoint-missing",
            f"{run.path} has no checkpoint of step {step}",
            got=f"steps {steps}",
            fix="--from one of these steps",
        )
    check_stays(source, run.path)
    strays: list[Path] = []
    for path in walk(source, strays=strays):
        target = again.checkpoints / str(step) / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path.resolve(), target)
        except OSError:
            # Another filesystem: the bytes themselves.
            shutil.copy2(path, target)
    if strays:
        raise HarnessError(
            "checkpoint-leads-out",
            f"{source} holds what is no file of its own; nothing was computed from it",
            got=", ".join(str(path.relative_to(source)) for path in strays[:3]),
            need="regular files only",
            fix=f"look at it first: harness inspect {word(source)}",
        )


def _train(run: RunDir, plan: Plan, trainer: Trainer, machine: Machine, watcher: Watcher) -> None:
    from harness.supervise.process import Limits
    from harness.supervise.run import supervise

    before = dict(os.environ)
    try:
        prepare_jax(plan, machine)
        os.environ["WANDB_MODE"] = "disabled"
        supervise(run, plan, trainer, watcher, look=lambda: machine, limits=Limits(), restarts=0)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _found(
    run: RunDir,
    manifest: Manifest,
    known: tuple[Dataset, NormStats] | None,
    remade: Manifest | None,
    machine: Machine,
    why: dict[str, str],
) -> Found:
    software, reasons = software_here(), dict(why)
    # openpi's software is that of its own environment, which only openpi itself can tell.
    theirs = manifest.upstream is not None
    if theirs and remade is None:
        reasons |= dict.fromkeys(("packages", "python", "lock", "upstream"), "openpi was not started here")
    recipe: dict[str, Any] | None = None
    try:
        recipe = load_recipe(str(run.path / RECIPE), root=run.path).model_dump(mode="json")
    except HarnessError as error:
        reasons["recipe"] = error.what
    plan = run.read(Plan)
    if remade is None:
        computed = ("device", "kernels", "leaves", "step_fingerprint", "executable_fingerprint")
        reasons |= dict.fromkeys(computed, "nothing was computed again")
    elif "leaves" not in remade.weights:
        reasons["leaves"] = "it began at a checkpoint, whose arrays were compared with their own digests"
    on_cuda = manifest.plan.levers.platform == "cuda"
    here = environment(os.environ | {"XLA_FLAGS": deterministic()} if on_cuda else os.environ)
    return Found(
        recipe=recipe,
        recipe_sha256=None if recipe is None else recipe_from(dict(recipe), where="recipe").sha256(),
        dataset_sha256=known[0].sha256 if known else None,
        norm_stats_sha256=sha256_json(known[1].norm_stats) if known else None,
        weights=None,
        dataset_revision=known[0].revision if known else None,
        leaves=remade.weights.get("leaves") if remade is not None else None,
        files=_files(run),
        plan=(
            plan.chosen.levers.model_dump(mode="json")
            if plan is not None and plan.chosen is not None
            else None
        ),
        packages=software.packages if not theirs else remade.packages if remade else None,
        packages_sha256=(
            software.packages_sha256 if not theirs else remade.packages_sha256 if remade else None
        ),
        python=software.python if not theirs else remade.python if remade else None,
        lock_sha256=software.lock_sha256 if not theirs else remade.lock_sha256 if remade else None,
        upstream=remade.upstream.commit if remade and remade.upstream else None,
        source_sha256=software.source_sha256,
        source_revision=software.source_revision,
        base_digest=software.base_digest,
        image_digest=software.image_digest,
        image_id=software.image_id,
        image=software.image,
        environment=remade.environment if remade is not None else here,
        machine=machine_facts(machine),
        device=remade.device if remade is not None else None,
        kernels_sha256=remade.kernels_sha256 if remade is not None else None,
        step_fingerprint=remade.step_fingerprint if remade is not None else None,
        executable_fingerprint=remade.executable_fingerprint if remade is not None else None,
        why=reasons,
    )


def _files(run: RunDir) -> dict[str, str]:
    """What the run's own files hold, hashed as its manifest did; a file that is gone or damaged differs."""

    def read(kind: type[A], sha256: Callable[[A], str]) -> str:
        try:
            artifact = run.read(kind)
        except HarnessError as error:
            return error.what
        return "missing" if artifact is None else sha256(artifact)

    return {
        Dataset.FILE: read(Dataset, lambda each: each.sha256),
        NormStats.FILE: read(NormStats, lambda each: sha256_json(each.norm_stats)),
    }
