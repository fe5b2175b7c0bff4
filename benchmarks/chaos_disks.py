"""Faults of disks that are full, too small, read-only or closed. Part of `benchmarks.chaos`."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack

from benchmarks.chaos_stage import Stage, Verdict
from benchmarks.containers import SAVE_EVERY, SMALL, Box, docker


def full_disk_before_a_save(stage: Stage) -> Verdict:
    return full_disk(stage, during_a_save=False)


def full_disk_during_a_save(stage: Stage) -> Verdict:
    return full_disk(stage, during_a_save=True)


def full_disk(stage: Stage, *, during_a_save: bool) -> Verdict:
    """A filesystem of 64 MiB fills up: before a save, which is then refused, or once a save has begun to
    write.
    """
    volume = f"harness-chaos-{os.getpid()}-{int(during_a_save)}"
    size = f"o=size=64m,mode=0755,uid={os.getuid()},gid={os.getgid()}"
    docker(
        "volume",
        "create",
        "--driver",
        "local",
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "--opt",
        size,
        volume,
    )
    name = "full-save" if during_a_save else "full"
    with ExitStack() as stack:
        stack.callback(subprocess.run, ["docker", "volume", "rm", "--force", volume], capture_output=True)
        # Holds the volume, which is gone when nobody has it mounted, and fills it.
        holder = stack.enter_context(
            Box(
                stage.image,
                ["--entrypoint", "sleep", "--user", "0", "--volume", f"{volume}:/runs:nocopy"],
                ["100000"],
            )
        )
        fill = (
            "python -c \"import sys\nwith open('/runs/ballast', 'wb', 0) as file:\n  while True:"
            ' file.write(bytes(1 << 16))"'
        )
        moment = (
            f"until ls /runs/{name}/checkpoints/8.orbax-checkpoint-tmp >/dev/null 2>&1; do :; done; "
            if during_a_save
            else ""
        )
        with stage.start(name, runs=volume, mode="rw,nocopy") as box:
            box.until(lambda: SAVE_EVERY in listed(holder, name), "step 4")
            subprocess.run(
                ["docker", "exec", holder.id, "sh", "-c", moment + fill], capture_output=True, check=False
            )
            ended = box.ended()
        docker("exec", holder.id, "rm", "/runs/ballast")
        # From the small filesystem to the host's, where it is looked at and resumed.
        copied = subprocess.Popen(
            ["docker", "exec", holder.id, "tar", "-C", "/runs", "-c", name], stdout=subprocess.PIPE
        )
        subprocess.run(["tar", "-C", str(stage.runs), "-x"], stdin=copied.stdout, check=True)
        copied.wait()
    return stage.verdict(
        name,
        ended,
        code=2,
        words=["[disk-full]", "the steps before it are whole" if not during_a_save else "whole"],
        kept=SAVE_EVERY,
    )


def listed(holder: Box, name: str) -> list[int]:
    done = subprocess.run(
        ["docker", "exec", holder.id, "ls", f"/runs/{name}/checkpoints"],
        capture_output=True,
        text=True,
        check=False,
    )
    return sorted(int(entry) for entry in done.stdout.split() if entry.isdigit())


def small_disk(stage: Stage) -> Verdict:
    """A filesystem too small from the start: the doctor says so; with --allow disk the save does, and what
    was there is whole.
    """
    tiny = ["--mount", "type=tmpfs,destination=/runs/small-disk,tmpfs-size=4m,tmpfs-mode=0777"]
    with stage.start("small-disk", options=tiny) as box:
        refused = box.ended()
    with stage.run("small-disk", *SMALL, "--allow=disk", options=tiny) as box:
        allowed = box.ended()
    problems = (
        []
        if refused.code == 1 and "disk: " in refused.said
        else [f"the doctor: {refused.code}, {refused.said[-600:]}"]
    )
    problems += (
        []
        if refused.said.count("for the next checkpoints") == 1
        else ["the disk was warned of more than once"]
    )
    problems += (
        []
        if allowed.code == 2 and "[disk-full]" in allowed.said
        else [f"with --allow disk: {allowed.code}, {allowed.said[-600:]}"]
    )
    return Verdict(
        f"{refused.code}; {allowed.code}", "error, disk: …; with --allow disk: error [disk-full] …", problems
    )


def read_only_volume(stage: Stage) -> Verdict:
    """A run directory that is mounted read-only is refused before anything is computed."""
    with stage.start("read-only") as box:
        stage.past(box, "read-only", SAVE_EVERY)
        docker("stop", "--time", "60", box.id)
    with stage.resume("read-only", mode="ro") as box:
        return stage.verdict(
            "read-only", box.ended(), code=2, words=["[not-writable]", "fix:"], kept=SAVE_EVERY
        )


def closed_directory(stage: Stage) -> Verdict:
    """The directory of checkpoints loses its write permission while the run goes on."""
    place = stage.runs / "closed" / "checkpoints"
    with stage.start("closed") as box:
        stage.past(box, "closed", SAVE_EVERY)
        place.chmod(0o500)
        ended = box.ended()
    place.chmod(0o755)
    return stage.verdict("closed", ended, code=2, words=["[not-writable]"], kept=SAVE_EVERY)
