"""Saves and restores training checkpoints in openpi's layout.

A save runs in the background, or is streamed while training waits. It gets its name when whole. A restore
reads leaf by leaf.

    <step>/params                                PyTree {"params": {… {"value": array}}}: the average with EMA
    <step>/train_state                           PyTree {"step", "params" (raw, with EMA), "opt_state"}
    <step>/assets/<asset_id>/norm_stats.json
    <step>/harness/record.json                   ours: recipe, plan, data position
    <step>/harness/digests.json                  ours: a sha256 of every leaf and of these text files
    <step>/harness/base.json                     ours: which weights hold what `params` leaves out

Source: openpi src/openpi/training/checkpoints.py, commit 15a9616.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from harness.checkpoint.digests import Digests, leaf_digests, read_digests
from harness.checkpoint.failures import disk_full, no_space, save_failure, under_its_name
from harness.checkpoint.format import mismatches
from harness.checkpoint.handlers import items_handler, tree_save
from harness.checkpoint.leaves import Leaf, open_leaves, read_leaves
from harness.checkpoint.memory import give_back_memory
from harness.checkpoint.paths import flat, leaf_paths, nbytes, nested, nested_state
from harness.checkpoint.prune import free_name, prune
from harness.checkpoint.shared_digests import shared_digests
from harness.checkpoint.source import damaged
from harness.checkpoint.texts import SaveTextFiles
from harness.checkpoint.texts_changed import text_digest
from harness.errors import HarnessError
from harness.received.files import ARTIFACT_BYTES, check_stays, there
from harness.received.json import read_json
from harness.received.names import below
from harness.received.writing import name_to_disk, to_disk
from harness.run.peers import ALONE, Peers
from harness.run.steps import (
    ASSETS,
    BASE,
    DIGESTS,
    INTERRUPTED,
    NORM_STATS,
    PARAMS,
    RECORD,
    TRAIN_STATE,
    is_whole,
    whole_steps,
)
from harness.units import MIB, format_bytes

Params = dict[str, jax.Array]

# Orbax measures its time-outs by the wall clock, which may jump. The supervisor handles a save that hangs.
_SAVE_TIMEOUT_S = 10**9
# Of several processes each waits for the others to write their parts.
_SHARED_SAVE_TIMEOUT_S = 3600


class Restored(NamedTuple):
    params: Params
    train_state: Any
    record: dict[str, Any]


class Store:
    """The checkpoint directory of one run.

    It keeps the last `keep_last` steps and every multiple of `keep_every_steps`. An interrupted save is never
    listed, restored or deleted. When its step is saved again, it is renamed out of the way.

    `streamed` saves while training waits, and then needs no copy of the state (`checkpoint.streamed`). The
    files have the same arrays. `told` is called from the threads that write, for each part that was written:
    (step, its bytes, the bytes of the whole step). `warn` hears of older steps that could not be deleted.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        keep_every_steps: int,
        keep_last: int = 1,
        peers: Peers = ALONE,
        streamed: bool = False,
        told: Callable[[int, int, int], None] | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        # Orbax logs every failure with many tracebacks before it raises. The error becomes one HarnessError
        # here.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.directory = Path(directory).absolute()
        self._keep_every_steps = keep_every_steps
        self._keep_last = keep_last
        self._peers = peers
        self._saving: int | None = None
        self._streamed, self._told, self._warn = streamed, told, warn
        self._writing = (0, 0)  # the step that is being saved, and its bytes
        # A directory that cannot be made is reported at once. Made in the background, its failure would be a
        # time-out ten minutes later.
        limit_s = _SAVE_TIMEOUT_S if peers.count == 1 else _SHARED_SAVE_TIMEOUT_S
        options = ocp.AsyncOptions(timeout_secs=limit_s, create_directories_asynchronously=False)
        handler = items_handler(options, peers, streamed=self._wrote if streamed else None)
        self._checkpointer = ocp.AsyncCheckpointer(handler, async_options=options)

    def save(
        self,
        step: int,
        *,
        params: Params,
        train_state: Any,
        norm_stats_json: str,
        asset_id: str,
        record: dict[str, Any],
        base: dict[str, str] | None = None,
    ) -> None:
        """Saves a step. Returns once the arrays are on the host; the files are written in the background.

        A streamed save returns when the step is whole, because the arrays are read until then.

        `base` (source and sha256) names the weights that hold what `params` leaves out, for `load_params`.
        Raises: a failure of the save before this one; HarnessError "checkpoint-exists", "disk-full",
        "not-writable", "save-failed", "name-leads-out", "file-leaves-root".
        """
        below(self.directory / str(step) / ASSETS, asset_id, "data.asset_id")
        self.wait()
        items = {PARAMS: {"params": nested(params)}, TRAIN_STATE: nested_state(train_state)}
        texts = {RECORD: json.dumps(record, indent=2, sort_keys=True) + "\n"} | (
            {} if base is None else {BASE: json.dumps(base) + "\n"}
        )
        assets = {f"{asset_id}/{NORM_STATS}": norm_stats_json}
        need_bytes = nbytes(items) + sum(map(len, texts.values())) + len(norm_stats_json)
        self._peers.first(lambda: self._make_room(step, need_bytes))
        self._writing = step, need_bytes
        # Hashed before the arrays are donated to the next step: the digests are those of what was trained,
        # not of what a disk made of it.
        leaves = {f"{item}/{path}": leaf for item, tree in items.items() for path, leaf in flat(tree).items()}
        files = texts | {f"{ASSETS}/{name}": text for name, text in assets.items()}
        of_leaves, tiles = (
            (leaf_digests(leaves, streamed=self._streamed), {})
            if self._peers.count == 1
            else shared_digests(leaves, self._peers, streamed=self._streamed)
        )
        digests = Digests(of_leaves, {name: text_digest(text) for name, text in files.items()}, tiles)
        ours = {Path(name).name: text for name, text in (texts | {DIGESTS: digests.to_json()}).items()}
        try:
            self._checkpointer.save(
                self.directory / str(step),
                args=ocp.args.Composite(
                    assets=SaveTextFiles(assets),
                    harness=SaveTextFiles(ours),
                    **{name: tree_save(tree) for name, tree in items.items()},
                ),
            )
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        self._saving = step
        if self._streamed:
            self.wait()

    def _wrote(self, count: int) -> None:
        if self._told is not None:
            self._told(self._writing[0], count, self._writing[1])

    def wait(self) -> None:
        """Waits until the save under way is whole on disk, then prunes older steps.

        Raises: HarnessError "disk-full" or "save-failed" of that save. The steps before it stay whole.
        """
        step, self._saving = self._saving, None
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            # The supervisor reports a lack of host or device memory. tensorstore calls a full disk a lack of
            # resources too.
            if isinstance(error, MemoryError) or (
                "RESOURCE_EXHAUSTED" in str(error) and not no_space(str(error))
            ):
                raise
            # Also of a save that had failed before anything was under way: both its items may tell of it.
            raise self._failed(self._writing[0], error) from error
        if step is not None:
            self._peers.first(lambda: self._end(step))
            give_back_memory()

    def close(self) -> None:
        """Waits for the last save. The store cannot save afterwards."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """The steps that are whole, ascending.

        Raises: UnsafeFile "file-leaves-root" if a link leads out of the run, because the steps are then
        another run's.
        """
        check_stays(self.directory, self.directory.parent)
        return whole_steps(self.directory)

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def restore(
        self,
        step: int,
        *,
        params: Mapping[str, jax.ShapeDtypeStruct],
        train_state: Any,
        keep: Callable[[str, jax.Array], Any] = lambda _, array: array,
    ) -> Restored:
        """The checkpoint of `step`, bit for bit, each leaf in the sharding of its ShapeDtypeStruct.

        A parameter is returned as `keep` returns it.
        Raises: HarnessError "checkpoint-missing", "checkpoint-damaged", or "checkpoint-mismatch", which lists
        every missing, unexpected and mis-shaped leaf.
        """
        self.wait()
        path = self._whole(step)
        structs, structure = jax.tree.flatten(train_state)
        state_paths = leaf_paths(train_state)
        wanted = {
            PARAMS: {f"params/{key}/value": struct for key, struct in params.items()},
            TRAIN_STATE: dict(zip(state_paths, structs, strict=True)),
        }
        for item in wanted:
            check_stays(path / item, path)
        leaves = {item: open_leaves(path / item) for item in wanted}
        problems = [
            f"{item}: {line}"
            for item in wanted
            for line in differences(leaves[item], wanted[item], same_dtype=True)
        ]
        if problems:
            raise HarnessError(
                "checkpoint-mismatch",
                f"{path} is of another model, optimizer or recipe: " + "; ".join(problems[:40]),
                got=f"{len(problems)} leaves that differ",
                need="the leaves of this recipe's training state",
                fix="resume with the recipe that wrote the checkpoint, or start a new run",
            )
        digests = read_digests(path)
        arrays = {}
        for item, structs_of in wanted.items():
            known = None if digests is None else {leaf: digests.of(f"{item}/{leaf}") for leaf in structs_of}
            read = read_leaves(leaves[item], structs_of, sha256=known)
            names = {f"params/{key}/value": key for key in params} if item == PARAMS else {}
            arrays[item] = {leaf: keep(names[leaf], array) if names else array for leaf, array in read}
        return Restored(
            {key: arrays[PARAMS][f"params/{key}/value"] for key in params},
            jax.tree.unflatten(structure, [arrays[TRAIN_STATE][key] for key in state_paths]),
            under_its_name(path, _read_record(path)),
        )

    def _whole(self, step: int) -> Path:
        if step in self.steps():
            return self.directory / str(step)
        interrupted = sorted(path.name for path in self.directory.glob(f"{step}{INTERRUPTED}*"))
        raise HarnessError(
            "checkpoint-missing",
            f"{self.directory} has no whole checkpoint of step {step}"
            + (f" (interrupted: {', '.join(interrupted)})" if interrupted else ""),
            got=f"whole steps {self.steps()}",
            need="a step whose save was finished",
            fix="resume from one of the whole steps, or start a new run",
        )

    def _make_room(self, step: int, need_bytes: int) -> None:
        """Checks destination and disk space, and renames what an interrupted save of this step left."""
        target = self.directory / str(step)
        try:
            check_stays(self.directory, self.directory.parent)
            self.directory.mkdir(parents=True, exist_ok=True)
            if is_whole(target):
                raise HarnessError(
                    "checkpoint-exists",
                    f"{target} is there already",
                    fix="save another step, or give the run another directory",
                )
            for left in (target, self.directory / f"{step}{INTERRUPTED}"):
                if there(left):
                    left.rename(free_name(self.directory / f"{step}{INTERRUPTED}"))
        except OSError as error:
            raise self._failed(step, error) from error
        free, need = shutil.disk_usage(self.directory).free, need_bytes + need_bytes // 20 + MIB
        if free < need:
            raise disk_full(self.directory, step, got=format_bytes(free), need=format_bytes(need))

    def _end(self, step: int) -> None:
        """Brings the step to the disk, and only then deletes older ones.

        Orbax brings the arrays there. A power cut may take the other files and the names of a step, and would
        take the run with them if the step before had been deleted.
        """
        path = self.directory / str(step)
        try:
            to_disk(path)
            name_to_disk(path)
        except OSError as error:
            raise self._failed(step, error) from error
        self._prune()

    def _prune(self) -> None:
        steps = self.steps()
        older = steps[: max(len(steps) - self._keep_last, 0)]
        said = prune(self.directory, [step for step in older if step % self._keep_every_steps])
        if said is not None:
            self._warn(said)

    def _failed(self, step: int | None, error: BaseException) -> HarnessError:
        text = str(error)
        if no_space(text):
            # This process wrote the partial save and knows that it is worthless. It occupies the space that
            # is lacking.
            shutil.rmtree(self.directory / f"{step}{INTERRUPTED}", ignore_errors=True)
            return disk_full(self.directory, step, got=None, need=None)
        return save_failure(self.directory, step, error, self.latest)


def differences(leaves: Mapping[str, Leaf], wanted: Mapping[str, Any], *, same_dtype: bool) -> list[str]:
    """One line for every missing, unexpected or mis-shaped leaf, with `same_dtype` for another dtype too."""
    lines = mismatches(
        {path: leaf.shape for path, leaf in leaves.items()},
        {path: tuple(struct.shape) for path, struct in wanted.items()},
    )
    both = sorted(wanted.keys() & leaves.keys()) if same_dtype else []
    other = [
        path
        for path in both
        if leaves[path].shape == tuple(wanted[path].shape) and leaves[path].dtype != wanted[path].dtype
    ]
    return lines + [f"{path} is {leaves[path].dtype}, not {wanted[path].dtype}" for path in other]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path / RECORD, path, ARTIFACT_BYTES)
    except (OSError, ValueError) as error:
        raise damaged(path, f"{RECORD} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise damaged(path, f"{RECORD} is not a mapping")
    return record
