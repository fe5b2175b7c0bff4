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
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks.containers import (
    SAVE_EVERY,
    SMALL,
    STEPS,
    Box,
    Ended,
    Image,
    digests,
    docker,
    metrics,
    saving,
    steps,
    unsound,
)


class Verdict(NamedTuple):
    """`ended` is the disturbed container's; `problems` what is not as it should be."""

    ended: str
    words: str
    problems: list[str]


class Stage:
    """Where runs are made: `runs` and `cache` on the host's disk, and the run that nothing disturbed."""

    def __init__(self, image: Image, root: Path) -> None:
        self.image, self.runs, self.cache, self.root = image, root / "runs", root / "cache", root
        self.whole = self.runs / "whole"
        for path in (self.runs, self.cache):
            path.mkdir()

    def run(
        self,
        name: str,
        *arguments: str,
        options: Sequence[str] = (),
        runs: str | None = None,
        mode: str = "rw",
        tini: bool = True,
    ) -> Box:
        """A container that trains `name`."""
        given = [
            *self.image.options(runs=runs or str(self.runs), cache=self.cache, mode=mode, tini=tini),
            *options,
        ]
        return Box(self.image, given, ["train", f"--run=/runs/{name}", *arguments])

    def start(self, name: str, **how: object) -> Box:
        return self.run(name, *SMALL, **how)  # type: ignore[arg-type]

    def resume(self, name: str, *arguments: str, **how: object) -> Box:
        return self.run(name, "--resume", *arguments, **how)  # type: ignore[arg-type]

    def reference(self) -> None:
        with self.start("whole") as box:
            ended = box.ended()
        if ended.code or steps(self.whole) != list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY)):
            raise SystemExit(f"the undisturbed run failed: {ended.code}, {ended.said[-3000:]}")

    def verdict(
        self, name: str, ended: Ended, *, code: int, words: Sequence[str], kept: int, resumes: bool = True
    ) -> Verdict:
        """The verdict on a disturbed run that must have kept the checkpoint of step `kept`; resumes it and
        compares.
        """
        run, problems = self.runs / name, []
        if ended.code != code:
            problems.append(f"exit code {ended.code}, not {code}: {ended.said.strip()[-300:]}")
        problems += [
            f"does not say {word!r}: {ended.said.strip()[-600:]}" for word in words if word not in ended.said
        ]
        there = steps(run)
        if kept and kept not in there:
            problems.append(f"checkpoints {there}, without {kept}")
        if there:
            problems += [
                f"step {there[-1]}: {text}" for text in unsound(self.image, run, self.cache, there[-1])
            ]
        if resumes:
            with self.resume(name) as box:
                again = box.ended()
            problems += (
                [f"the resume ended with {again.code}: {again.said.strip()[-600:]}"]
                if again.code
                else self.differs(run)
            )
        said = [line for line in ended.said.splitlines() if line.startswith("error")]
        shutil.rmtree(run, ignore_errors=True)
        return Verdict(
            f"{ended.code}{', OOMKilled' if ended.oom else ''}",
            (said or [words[0] if words else "-"])[-1],
            problems,
        )

    def differs(self, run: Path) -> list[str]:
        """What is not as in the run that nothing disturbed."""
        found = [] if metrics(run) == metrics(self.whole) else ["the lines of metrics differ"]
        # A stop saves where it stands, beside the steps of the recipe.
        missing = {*steps(self.whole)} - {*steps(run)}
        found += [f"checkpoints {sorted(missing)} are missing"] if missing else []
        return found + [
            f"arrays of step {step} differ"
            for step in sorted({*steps(self.whole)} - missing)
            if digests(run, step) != digests(self.whole, step)
        ]

    def past(self, box: Box, name: str, step: int) -> None:
        """Waits until the checkpoint of `step` is whole and a line after it is written."""
        box.until(
            lambda: step in steps(self.runs / name) and len(metrics(self.runs / name)) > step, f"step {step}"
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


def full_disk_before_a_save(stage: Stage) -> Verdict:
    return full_disk(stage, during_a_save=False)


def full_disk_during_a_save(stage: Stage) -> Verdict:
    return full_disk(stage, during_a_save=True)


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
