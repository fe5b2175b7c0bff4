"""Checks of the host: memory, disk, shared memory, process limits, clock."""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from harness.artifacts.doctor import Finding
from harness.artifacts.plan import STREAMED_HOST_BYTES
from harness.doctor.situation import (
    NotNeeded,
    Situation,
    error,
    short_of_host,
    unknown,
    warning,
    without_plan,
)
from harness.received.denied import may_be_written
from harness.recipe.schema import Train
from harness.run.directory import RunDir
from harness.run.steps import whole_steps
from harness.units import GIB, MIB, format_bytes

# The memory of Python, JAX and XLA's compiler, which the plan of a CPU does not count.
_PROCESS_BYTES = GIB
_MORE = (
    "more memory for the container or the machine; a plan that saves less: --recipe pi05_libero_lora,"
    " --set train.save=trained"
)
_SHM_BYTES = 512 * MIB
_FILES = 4096
# XLA's and the loader's threads count against this limit, and so do all other processes of this user.
_PROCESSES = 1024
# No version of this package existed before this time (seconds since the epoch).
_FIRST_RELEASE_S = 1_790_000_000
_CLOCK_SLACK_S = 3600


def memory(situation: Situation) -> Iterator[Finding]:
    """Checks that host memory holds the plan's part of the state, and one checkpoint while it is saved."""
    host, chosen = situation.machine.host, situation.plan.chosen if situation.plan else None
    least = short_of_host(situation.plan) if situation.plan and chosen is None else None
    if least is not None:
        yield error(
            "host memory",
            f"{format_bytes(host.ram_available_bytes)} available of {format_bytes(host.ram_total_bytes)}: no"
            " plan fits",
            f"at least {format_bytes(least.host_bytes)}, for the smallest plan that the GPU has room for",
            f"close other programs; {_MORE}",
        )
        return
    if chosen is None:
        yield without_plan("host memory", situation)
        return
    if host.ram_available_bytes is None:
        yield unknown(
            "host memory", host.unknown.get("ram_available_bytes", "not known"), "free memory", "free -h"
        )
        return
    saving = (chosen.disk_bytes or 0) // 2
    if chosen.levers.save == "streamed":
        saving = min(saving, STREAMED_HOST_BYTES)
    # A save copies the state before it writes. The plan of a GPU counts that copy and the process. The plan
    # of a CPU counts only the memory for XLA's computation. Where CPU and GPU share one memory, the plan
    # counts both.
    counted = max(chosen.shared_phases.values(), default=chosen.host_bytes or 0)
    need = counted + (0 if chosen.levers.platform == "cuda" else saving + _PROCESS_BYTES)
    if need > host.ram_available_bytes:
        total = host.ram_total_bytes
        ever = total is not None and need > total
        got = f"{format_bytes(host.ram_available_bytes)} available of {format_bytes(total)}"
        what = f"{format_bytes(need)}, of which {format_bytes(saving)} to save a checkpoint"
        yield (error if ever else warning)(
            "host memory", got, what, _MORE if ever else f"close other programs; {_MORE}"
        )


def disk(situation: Situation) -> Iterator[Finding]:
    """Checks that the disk has room for the next two checkpoints, and for all that will be kept.

    Room for all includes one more checkpoint, the one being saved.
    """
    chosen = situation.plan.chosen if situation.plan else None
    if chosen is None or chosen.disk_bytes is None:
        yield without_plan("disk", situation)
        return
    directory = situation.run or next(iter(situation.writes), None)
    if directory is None:
        raise NotNeeded("nothing is written")
    one, held = chosen.disk_bytes // 2, whole_steps(RunDir(directory).checkpoints, situation.backend)
    soon, most = more_checkpoints(situation.recipe.train, held)
    free = shutil.disk_usage(_existing(directory)).free
    fix = "free space there, or keep runs elsewhere: HARNESS_RUNS=DIR (in compose HARNESS_RUNS_DIR=DIR)"
    got = f"{format_bytes(free)} free at {directory}"
    if free < soon * one:
        yield error("disk", got, f"{format_bytes(soon * one)} for the next checkpoints", fix)
    elif free < most * one:
        need = (
            f"{format_bytes(most * one)} for at most {most} more checkpoints there, one of them being saved"
        )
        yield warning("disk", got, need, f"{fix}; or keep fewer: --set train.keep_every_steps=10000")


def more_checkpoints(train: Train, held: Collection[int]) -> tuple[int, int]:
    """The largest numbers of additional checkpoints on the disk: over the next two saves, and over all.

    Additional means more than the `held` ones. The rule is that of `checkpoint.store.Store`: while a step is
    saved, the last one is still there. Then only multiples of `keep_every_steps` stay.
    """
    steps = [*range(train.save_every_steps, train.steps, train.save_every_steps), train.steps]
    kept, counts = set(held), []
    for step in steps:
        if step > max(held, default=0):
            counts.append(len(kept) + 1 - len(held))
            kept = {one for one in kept if one % train.keep_every_steps == 0} | {step}
    return max(counts[:2], default=0), max(counts, default=0)


def shared_memory(situation: Situation) -> Iterator[Finding]:
    """Checks that /dev/shm holds the batches of loader processes.

    With a container's default of 64 MB the loader ends in "Bus error".
    """
    if not int(_integer(situation.environ.get("HARNESS_LOADER_WORKERS"))):
        raise NotNeeded("no loader processes: HARNESS_LOADER_WORKERS is not set")
    size = situation.machine.host.shm_bytes
    if size is None:
        yield unknown(
            "/dev/shm",
            situation.machine.host.unknown.get("shm_bytes", "not known"),
            "its size",
            "df -h /dev/shm",
        )
    elif size < _SHM_BYTES:
        fix = "docker run --shm-size=8g (compose.yaml has it), or unset HARNESS_LOADER_WORKERS"
        yield error("/dev/shm", format_bytes(size), f"{format_bytes(_SHM_BYTES)} for loader processes", fix)


def process_limits() -> dict[str, int]:
    """The soft limits of this process by their letter in `ulimit`. Unlimited ones are left out."""
    limits = {
        "n": resource.RLIMIT_NOFILE,
        "u": resource.RLIMIT_NPROC,
        "v": resource.RLIMIT_AS,
        "f": resource.RLIMIT_FSIZE,
    }
    soft = {letter: resource.getrlimit(limit)[0] for letter, limit in limits.items()}
    return {letter: value for letter, value in soft.items() if value != resource.RLIM_INFINITY}


def limits(situation: Situation) -> Iterator[Finding]:
    """Checks that the process may open and write a checkpoint's files, and use all memory."""
    files, processes = situation.limits.get("n", _FILES), situation.limits.get("u", _PROCESSES)
    if files < _FILES:
        yield warning("ulimit", f"{files} open files", f"{_FILES}", "ulimit -n 16384 (compose.yaml has it)")
    if processes < _PROCESSES:
        yield warning(
            "ulimit",
            f"{processes} processes and threads",
            f"{_PROCESSES}",
            "ulimit -u unlimited; in compose: no pids limit below that",
        )
    for letter, what in (("v", "address space"), ("f", "file size")):
        if letter in situation.limits:
            yield warning(
                "ulimit",
                f"{what} limited to {format_bytes(situation.limits[letter])}",
                "no limit",
                f"ulimit -{letter} unlimited",
            )


def clock(situation: Situation) -> Iterator[Finding]:
    """Checks that the clock is plausible, and not behind the run's files.

    With a clock far in the past, every https connection fails.
    """
    now = time.time()
    fix = "set the clock: timedatectl set-ntp true; under WSL2 after a sleep: sudo hwclock -s"
    if now < _FIRST_RELEASE_S:
        yield error(
            "clock",
            time.strftime("%Y-%m-%d", time.gmtime(now)),
            "today's date: certificates are not yet valid then",
            fix,
        )
    files = (
        [path for path in situation.run.iterdir() if path.is_file()]
        if situation.run and situation.run.is_dir()
        else []
    )
    newest = max((path.stat().st_mtime for path in files), default=0.0)
    if newest > now + _CLOCK_SLACK_S:
        yield warning(
            "clock",
            f"the run has files of {format(newest - now, '.0f')} s from now",
            "a clock that does not jump",
            fix,
        )


def writable(situation: Situation) -> Iterator[Finding]:
    """Checks that this user may write to the directories of the run and the cache."""
    for path in situation.writes:
        there = _existing(path)
        probe = there / f".writable.{os.getpid()}"
        try:
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as failure:
            fix = f"{may_be_written(there)}; in compose HARNESS_UID=$(id -u) HARNESS_GID=$(id -g)"
            yield error(
                "writable",
                f"{path}: {failure.strerror} for uid {os.getuid()}",
                "a directory that this user may write",
                fix,
            )


def _existing(path: Path) -> Path:
    """`path`, or its nearest existing parent directory."""
    path = path.absolute()
    return next(directory for directory in (path, *path.parents) if directory.is_dir())


def _integer(text: str | None) -> int:
    return int(text) if text and text.strip().isdigit() else 0
