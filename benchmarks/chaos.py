"""Real faults in real containers: each must end with the right words and exit code, leave the checkpoint
before it whole, and resume bit for bit.

    python -m benchmarks.chaos [--image harness:cpu] [--source .] [--fault NAME …] [--scratch DIR]

Needs a running engine and the image (docker compose build smoke), and builds nothing; `--source` mounts a
checkout's package over the image's own. The smoke recipe at 56 pixels, 32 steps, a checkpoint every 4. After
each fault every checkpoint is read and compared with its sha256 (`harness inspect --deep`), the run is
resumed in a healthy container, and compared with one that nothing disturbed: the digest of every array of
every checkpoint, every line of metrics, the frames of every step. Faults: see FAULTS at the end. Exit code 1
when one of them is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos_disks import (
    closed_directory,
    full_disk_before_a_save,
    full_disk_during_a_save,
    read_only_volume,
    small_disk,
)
from benchmarks.chaos_stage import Stage, Verdict
from benchmarks.containers import (
    SAVE_EVERY,
    Box,
    Image,
    docker,
    metrics,
    saving,
)

LIMITED = ("--memory", "1600m", "--memory-swap", "1600m")


def hog(stage: Stage, box: Box, name: str, first: Callable[[], int]) -> None:
    """Takes the container's memory once the first checkpoint is there, until the kernel kills; `first` is
    whom it is to kill first, as the host numbers it.
    """
    usage = f"import os\nwhile not os.path.isdir('/runs/{name}/checkpoints/{SAVE_EVERY}'): pass\ntaken = []\n"
    usage += "while True: taken.append(bytearray(b'x') * (1 << 24))"
    box.until((stage.runs / name / "manifest.json").exists, "the trainer is there")
    Path(f"/proc/{first()}/oom_score_adj").write_text("1000")
    subprocess.run(
        ["docker", "exec", "--detach", box.id, "python", "-c", usage], check=True, capture_output=True
    )


def memory_of_the_trainer(stage: Stage) -> Verdict:
    """The memory limit is hit while training; the kernel kills the trainer, and the supervisor tells."""
    with stage.start("oom", options=LIMITED) as box:
        hog(stage, box, "oom", box.trainer)
        return stage.verdict("oom", box.ended(), code=2, words=["[host-out-of-memory]"], kept=SAVE_EVERY)


def memory_of_all(stage: Stage) -> Verdict:
    """The kernel takes the supervisor first, and with it the container: nobody is left to tell but `status`
    and the engine.
    """
    with stage.start("oom-all", options=LIMITED) as box:
        hog(stage, box, "oom-all", box.supervisor)
        ended = box.ended()
    options = stage.image.options(runs=str(stage.runs), cache=stage.cache)
    status = subprocess.run(
        ["docker", "run", "--rm", *options, stage.image.name, "status", "/runs/oom-all"],
        capture_output=True,
        text=True,
        check=False,
    )
    return stage.verdict(
        "oom-all", ended._replace(said=status.stdout), code=137, words=["died"], kept=SAVE_EVERY
    )


def memory_at_the_start(stage: Stage) -> Verdict:
    """A resume in containers too small, for any plan or for the process around it: refused before anything is
    computed.
    """
    with stage.start("small") as box:
        stage.past(box, "small", SAVE_EVERY)
        docker("stop", "--time", "60", box.id)
    with stage.resume("small", options=["--memory", "300m", "--memory-swap", "300m"]) as box:
        unplanned = box.ended()
    with stage.resume("small", options=["--memory", "580m", "--memory-swap", "580m"]) as box:
        made = stage.verdict("small", box.ended(), code=1, words=["error, host memory: "], kept=SAVE_EVERY)
    problems = (
        []
        if unplanned.code == 1 and "no plan fits" in unplanned.said
        else [f"with 300 MB: {unplanned.code}, {unplanned.said[-600:]}"]
    )
    return made._replace(
        ended=f"{unplanned.code}; {made.ended}",
        words="no plan fits …; error, host memory: …",
        problems=problems + made.problems,
    )


def stop(stage: Stage) -> Verdict:
    """`docker stop` with 10 s of grace, between steps."""
    with stage.start("stop") as box:
        stage.past(box, "stop", SAVE_EVERY)
        docker("stop", "--time", "10", box.id)
        return stage.verdict(
            "stop", box.ended(), code=0, words=["stopped and saved at step"], kept=SAVE_EVERY
        )


def stop_at_the_start(stage: Stage) -> Verdict:
    """The same before anything is trained, and as the container's first process, which hears no signal that
    it has not asked for.
    """
    with stage.start("stop-start", tini=False) as box:
        box.until(lambda: "planning" in box.said(), "it plans")
        began = time.monotonic()
        docker("stop", "--time", "10", box.id)
        took, ended = time.monotonic() - began, box.ended()
    made = stage.verdict(
        "stop-start", ended, code=ended.code if ended.code in (0, 2) else 2, words=["stopped"], kept=0
    )
    return made._replace(problems=made.problems + (["it did not stop within its grace"] if took > 10 else []))


def kill(stage: Stage) -> Verdict:
    """`docker kill` while a save is under way."""
    with stage.start("kill") as box:
        stage.past(box, "kill", SAVE_EVERY)
        box.until(lambda: saving(stage.runs / "kill"), "a save")
        docker("kill", box.id)
        return stage.verdict("kill", box.ended(), code=137, words=[], kept=SAVE_EVERY)


def clock(stage: Stage) -> Verdict:
    """The wall clock jumps a day back and then a year ahead while the run goes on; then it is stopped, and
    goes on at the right time again.
    """
    library, control = stage.root / "clock_shift.so", stage.root / "shift"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Verdict("-", "not tried: no C compiler on this machine", [])
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            "-O2",
            str(Path(__file__).with_name("clock_shift.c")),
            "-o",
            str(library),
        ],
        check=True,
    )
    shift(control, 0)
    mounts = [
        "--volume",
        f"{library}:/clock.so:ro",
        "--volume",
        f"{control}:/shift:ro",
        "--env",
        "LD_PRELOAD=/clock.so",
        "--env",
        "CLOCK_SHIFT=/shift",
    ]
    name, problems = "clock", []
    with stage.start(name, options=mounts) as box:
        box.until(lambda: len(metrics(stage.runs / name)) >= 2, "two steps")
        shift(control, -86_400)
        box.until(lambda: len(metrics(stage.runs / name)) >= 5, "five steps")
        shift(control, 365 * 86_400)
        box.until(lambda: len(metrics(stage.runs / name)) >= 8, "eight steps")
        docker("stop", "--time", "60", box.id)
        ended = box.ended()
    times = [
        json.loads(line)["time"] for line in (stage.runs / name / "metrics.jsonl").read_text().splitlines()
    ]
    if not (min(times) < time.time() - 80_000 and max(times) > time.time() + 360 * 86_400):
        problems.append("the clock did not jump")
    options = [*stage.image.options(runs=str(stage.runs), cache=stage.cache), stage.image.name]
    for verb in ("status", "analyse", "report"):
        done = subprocess.run(
            ["docker", "run", "--rm", *options, verb, f"/runs/{name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        problems += (
            [f"{verb}: {done.stderr[-300:]}"] if "Traceback" in done.stderr or done.returncode == 2 else []
        )
    made = stage.verdict(name, ended, code=0, words=["stopped and saved at step"], kept=SAVE_EVERY)
    return made._replace(problems=problems + made.problems)


def shift(control: Path, seconds: int) -> None:
    """Written in place: the container has this very file mounted."""
    with control.open("r+b" if control.exists() else "wb") as file:
        file.write(struct.pack("q", seconds))


def two_runs(stage: Stage) -> Verdict:
    """A second container at the same directory is refused and changes nothing; when the first is killed, it
    gets in.
    """
    with stage.start("two") as box:
        stage.past(box, "two", SAVE_EVERY)
        with stage.resume("two") as second:
            ended = second.ended()
        host = docker("inspect", "--format", "{{.Config.Hostname}}", box.id).strip()
        went_on = box.runs or box.ended().code == 0
        if box.runs:
            docker("kill", box.id)
        box.ended()
    made = stage.verdict("two", ended, code=2, words=["[run-busy]", host], kept=SAVE_EVERY)
    return made._replace(problems=made.problems + ([] if went_on else ["the first run was disturbed"]))


FAULTS: dict[str, Callable[[Stage], Verdict]] = {
    "memory limit, the trainer": memory_of_the_trainer,
    "memory limit, the container": memory_of_all,
    "memory limit, at the start": memory_at_the_start,
    "disk full before a save": full_disk_before_a_save,
    "disk full during a save": full_disk_during_a_save,
    "disk too small": small_disk,
    "docker stop -t 10": stop,
    "docker stop at the start": stop_at_the_start,
    "docker kill during a save": kill,
    "read-only volume": read_only_volume,
    "no permission any more": closed_directory,
    "clock jump": clock,
    "two runs on one directory": two_runs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--image", default="harness:cpu")
    parser.add_argument("--source", type=Path, default=None)
    parser.add_argument(
        "--fault",
        action="append",
        choices=FAULTS,
        metavar="NAME",
        help=f"one of: {'; '.join(FAULTS)} (may be given again; default: all)",
    )
    parser.add_argument("--scratch", type=Path, default=None)
    arguments = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        stage = Stage(Image(arguments.image, arguments.source), Path(scratch).absolute())
        print("the run that nothing disturbs", file=sys.stderr, flush=True)
        stage.reference()
        print(
            "| fault | exit code | words | the checkpoint before it is whole, the resume equal |\n| --- | ---"
            " | --- | --- |",
            flush=True,
        )
        for name in arguments.fault or FAULTS:
            print(name, file=sys.stderr, flush=True)
            try:
                verdict = FAULTS[name](stage)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                verdict = Verdict("-", "-", [f"{type(error).__name__}: {error}"])
            bad += bool(verdict.problems)
            words = verdict.words if len(verdict.words) < 160 else verdict.words[:160] + "…"
            print(
                f"| {name} | {verdict.ended} | {words} |"
                f" {'yes' if not verdict.problems else 'NO: ' + ' / '.join(verdict.problems)} |",
                flush=True,
            )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
