"""A verification from its parts: what the run's manifest says, what is found here, and its first steps computed once more."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from harness.artifacts import Dataset, Machine, Manifest, NormStats, Plan
from harness.artifacts.verdict import Replay, Verdict
from harness.chain import Chain, prepare_jax
from harness.download import is_remote, kept_tree
from harness.errors import HarnessError
from harness.recipe import load_recipe, recipe_from
from harness.rundir import RECIPE, RunDir, sha256_directory, sha256_file, sha256_json
from harness.surroundings import environment, machine_facts, software_here
from harness.verify.fields import Found, compare, first_difference, overall
from harness.verify.replay import OTHER_DEVICE_TOLERANCE, compare_metrics, recorded_metrics
from harness.watcher import Watcher

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def verify_run(run: RunDir, *, steps: int, start: int, device: str | None, watcher: Watcher) -> Verdict:
    """The verdict on `run` against this machine and these files.

    Raises: HarnessError "not-a-run", "checkpoint-missing", "metrics-missing", "metrics-invalid".
    """
    manifest = _manifest(run)
    recorded = recorded_metrics(run.metrics) if steps else {}
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as scratch:
        again = RunDir(Path(scratch) / "run")
        chain = Chain(again, recipe_from(dict(manifest.recipe), [f"train.steps={max(start + steps, 1)}"], where=f"{run.path}/{Manifest.FILE}"), trains=True)
        watcher.say("reading data and statistics")
        machine = chain.machine()
        known, why = _data(chain)
        replay = None
        if steps:
            replay = _replay(run, manifest, chain, machine, known, recorded, (start, steps), device, watcher)
        remade = again.read(Manifest)
        found = _found(run, manifest, known, remade, machine, why)
    rows = compare(manifest, found)
    named = first_difference(rows) or (replay.first if replay is not None and replay.status == "differs" else None)
    verdict = overall(rows, [replay.status] if replay is not None else [])
    return Verdict(run=str(run.path), against="this machine and these files", fields=rows, replay=replay, verdict=verdict, first_difference=named)


def verify_pair(run: RunDir, other: RunDir) -> Verdict:
    """The verdict on two runs: their manifests, and the metrics of every step that both have, bit for bit.

    Raises: as `verify_run`.
    """
    a, b = _manifest(run), _manifest(other)
    weights = _weights_of(b)
    found = Found(
        recipe=b.recipe,
        dataset_sha256=b.dataset_sha256,
        norm_stats_sha256=b.norm_stats_sha256,
        weights=weights,
        plan=b.plan.levers.model_dump(mode="json"),
        packages=b.packages,
        python=b.python,
        lock_sha256=b.lock_sha256,
        source_revision=b.source_revision,
        image=b.image,
        environment=b.environment,
        machine=b.machine,
        device=b.device,
        step_fingerprint=b.step_fingerprint,
    )
    rows = compare(a, found)
    replay = compare_metrics(recorded_metrics(run.metrics), recorded_metrics(other.metrics), start=0, tolerance=0.0, device=b.device, note="as recorded")
    named = first_difference(rows) or replay.first
    return Verdict(run=str(run.path), against=str(other.path), fields=rows, replay=replay, verdict=overall(rows, [replay.status]), first_difference=named)


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


def _data(chain: Chain) -> tuple[tuple[Dataset, NormStats] | None, dict[str, str]]:
    """Dataset and statistics as they are now, or why they cannot be read."""
    try:
        dataset = chain.dataset()
        return (dataset, chain.stats(dataset)), {}
    except HarnessError as error:
        return None, dict.fromkeys(("dataset", "norm_stats"), f"{error.what}")


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
            raise HarnessError("dataset-unreadable", "the data cannot be read here", fix="give the data as it was")
        if start:
            _copy_step(run, again, start)
        plan = _plan_as_recorded(chain, manifest, machine, known[0], device)
        again.write(plan)
        watcher.say(f"computing {steps} steps again on {plan.device}")
        _train(again, plan, machine, watcher)
    except HarnessError as error:
        if error.code == "checkpoint-missing":
            raise
        return compare_metrics(recorded, {}, start=start, tolerance=0.0, device="none", note=error.what).model_copy(update={"note": str(error)})
    assert plan.chosen is not None
    remade = again.read(Manifest)
    kind = remade.device if remade is not None else manifest.device
    same = kind == manifest.device and plan.chosen.levers == manifest.plan.levers
    exact = same and (
        plan.chosen.levers.platform == "cpu" or all(_DETERMINISTIC in place.get("XLA_FLAGS", "") for place in (manifest.environment, environment()))
    )
    note = "bit for bit" if exact else "another device, plan or kernels that are not deterministic: within a tolerance"
    computed = {step: values for step, values in recorded_metrics(again.metrics).items() if step >= start}
    return compare_metrics(recorded, computed, start=start, tolerance=0.0 if exact else OTHER_DEVICE_TOLERANCE, device=kind, note=note)


def _plan_as_recorded(chain: Chain, manifest: Manifest, machine: Machine, dataset: Dataset, device: str | None) -> Plan:
    """This machine's plan, carried out with the levers of the run where the platform is the same.

    Raises: HarnessError "no-gpu" and the planner's others, or "does-not-fit".
    """
    plan = chain.plan(machine, dataset, device=device or (None if manifest.plan.levers.platform == "cuda" else "cpu"), exact=True, saves=False)
    if plan.chosen is None:
        fix = "verify it on a machine with the memory that the run had"
        raise HarnessError("does-not-fit", f"no plan fits {plan.device}: {plan.candidates[-1].reason}", fix=fix)
    if plan.chosen.levers.platform != manifest.plan.levers.platform:
        return plan
    return plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"levers": manifest.plan.levers})})


def _copy_step(run: RunDir, again: RunDir, step: int) -> None:
    source = run.checkpoints / str(step)
    if not source.is_dir():
        steps = sorted(int(path.name) for path in run.checkpoints.iterdir() if path.name.isdigit()) if run.checkpoints.is_dir() else []
        raise HarnessError("checkpoint-missing", f"{run.path} has no checkpoint of step {step}", got=f"steps {steps}", fix="--from one of these steps")

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b)
        except OSError:
            # Another filesystem: the bytes themselves.
            shutil.copy2(a, b)

    shutil.copytree(source, again.checkpoints / str(step), copy_function=link)


def _train(run: RunDir, plan: Plan, machine: Machine, watcher: Watcher) -> None:
    from harness.supervise.process import Limits
    from harness.supervise.run import supervise, worker

    before = dict(os.environ)
    try:
        prepare_jax(plan, machine)
        os.environ["WANDB_MODE"] = "disabled"
        supervise(run, plan, watcher, look=lambda: machine, limits=Limits(), restarts=0, command=[*worker(run), "--without-checkpoints"])
    finally:
        os.environ.clear()
        os.environ.update(before)


def _found(run: RunDir, manifest: Manifest, known: tuple[Dataset, NormStats] | None, remade: Manifest | None, machine: Machine, why: dict[str, str]) -> Found:
    software, reasons = software_here(), dict(why)
    recipe: dict[str, Any] | None = None
    try:
        recipe = load_recipe(str(run.path / RECIPE)).model_dump(mode="json")
    except HarnessError as error:
        reasons["recipe"] = error.what
    weights = _weights_here(manifest, reasons)
    plan = run.read(Plan)
    if remade is None:
        reasons |= dict.fromkeys(("device", "step_fingerprint"), "nothing was computed again from step 0")
    return Found(
        recipe=recipe,
        dataset_sha256=known[0].sha256 if known else None,
        norm_stats_sha256=sha256_json(known[1].norm_stats) if known else None,
        weights=weights,
        plan=plan.chosen.levers.model_dump(mode="json") if plan is not None and plan.chosen is not None else None,
        packages=software.packages,
        python=software.python,
        lock_sha256=software.lock_sha256,
        source_revision=software.source_revision,
        image=software.image,
        environment=environment(),
        machine=machine_facts(machine),
        device=remade.device if remade is not None else None,
        step_fingerprint=remade.step_fingerprint if remade is not None else None,
        why=reasons,
    )


def _weights_of(manifest: Manifest) -> dict[str, str]:
    from harness.verify.fields import weights_digests

    return weights_digests(manifest.weights)


def _weights_here(manifest: Manifest, reasons: dict[str, str]) -> dict[str, str] | None:
    """The digests of the weights as they lie here now, in the form of the manifest's own."""
    recorded, source = manifest.weights, str(manifest.weights.get("source"))
    if source == "random":
        return {"source": "random", "seed": str(manifest.recipe["train"]["seed"])}
    found: dict[str, str] = {"source": source}
    tree = kept_tree(source) if is_remote(source) else None
    for name in recorded.get("files", {}):
        path = Path(name) if tree is None else tree / name
        if not path.exists() or (is_remote(source) and tree is None):
            reasons["weights"] = f"{source} is not on this machine" + ("; harness train fetches it" if is_remote(source) else "")
            return None
        short = name.rpartition("/")[2] if name.startswith("/") else name
        found[short] = sha256_directory(path) if path.is_dir() else sha256_file(path)
    return found
