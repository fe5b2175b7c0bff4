"""The process that starts and follows openpi's trainer: `python -m harness.openpi.worker RUN [--any-commit]`.

It takes the place of the harness's own trainer (harness/train/worker.py): its parent watches it, and an event
is a line of JSON on stdout. openpi is its child. openpi's output becomes metrics and phases, and goes to
stderr and openpi/console.log. This process ends as openpi ends: if a signal killed openpi, it ends by the
same signal, and its parent explains that. openpi itself saves nothing when it is asked to stop; this process
waits only for a save under way.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Manifest, Metrics
from harness.errors import HarnessError
from harness.openpi import entry as openpi_entry
from harness.openpi.console import Console, is_finite
from harness.openpi.files import FOLDER, JOB, fetch_weights, lay_out_files
from harness.openpi.install import IMPORT, Installation, check_wandb, find_installation
from harness.openpi.manifest import describe_run, resumed
from harness.openpi.steps import Records, is_saving
from harness.received.text import for_terminal
from harness.received.writing import open_to_write
from harness.recipe.fingerprint import norm_verdict
from harness.redact import redact
from harness.run.directory import RunDir
from harness.run.steps import interrupted_saves, resumes_after, steps_taken, whole_steps

_POLL_S = 1.0
# Longest wait of a stop for a save under way: a full state of 42 GB to a slow disk.
_SAVE_S = 15 * 60
_LAST_WORDS = 60
_SIGNALS_OF_A_SHELL = 128
# Upstream's log below warnings, and its steps, which the harness reports itself. They go to console.log only.
_CHATTER = re.compile(r"\d\d:\d\d:\d\d\.\d{3} \[[DI]\] |Step \d+: ")
_PIPES: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}


class _Ended(NamedTuple):
    returncode: int
    stopped: bool
    words: list[str]


def main() -> int:
    """The exit code: 0 if openpi ended as it should or was asked to stop; 2 if it could not train.

    With 2 the reason is an event. In other cases the process ends as openpi ended.
    """
    from harness.supervise.channel import Channel, private_stdout
    from harness.supervise.signals import die_with_supervisor

    die_with_supervisor()
    channel = Channel(private_stdout())
    try:
        return _Follower(RunDir(Path(sys.argv[1])), channel, any_commit="--any-commit" in sys.argv).run()
    except HarnessError as error:
        channel.error(error)
        return 2


class _Follower:
    """One start of openpi, followed to its end."""

    def __init__(self, run: RunDir, channel: Any, *, any_commit: bool) -> None:
        from harness.run.job import job_of

        self._job, self._channel, self._run, self._any_commit = job_of(run), channel, run, any_commit
        self._stop: list[float] = []
        self._is_chatter = False
        self._weights: dict[str, Any] = {}
        self._told: dict[str, Any] | None = None
        self._begun = resumes_after(run.checkpoints, "openpi")
        self._console = Console(self._job.recipe, start=self._begun)
        self._records: Records | None = None
        self._metrics: Any = None

    def run(self) -> int:
        from harness.supervise.signals import stop_requests

        recipe, channel = self._job.recipe, self._channel
        if self._begun >= recipe.train.steps:
            channel.say(f"already trained to step {self._begun}; nothing to do (--steps N trains further)")
            channel.end(self._begun, finished=True)
            return 0
        channel.phase(IMPORT)
        installation = find_installation(any_commit=self._any_commit)
        weights, self._weights = fetch_weights(recipe)
        resume = self._prepare_checkpoints()
        job = self._job
        variables = lay_out_files(self._run, recipe, job.plan, job.dataset, job.stats, weights, resume=resume)
        try:
            with stop_requests(lambda _: self._stop.append(time.monotonic())):
                ended = self._follow(installation, variables)
        finally:
            if self._metrics is not None:
                self._metrics.close()
            if self._records is not None:
                self._records.close()
        return self._end(ended)

    def _prepare_checkpoints(self) -> bool:
        """True if upstream is to resume. Warns about checkpoints that it will not resume from."""
        checkpoints = self._run.checkpoints
        steps = whole_steps(checkpoints, "openpi")
        for save in interrupted_saves(checkpoints):
            self._channel.warn(
                f"{save.name} was never finished; openpi does not resume from it and does not remove it"
                " (harness inspect --clean does)"
            )
        if checkpoints.is_dir() and not self._begun:
            what = "only step 0 is whole, from which openpi does not resume" if steps else "no step is whole"
            self._channel.warn(f"{checkpoints} is there, and {what}: openpi starts anew")
        return checkpoints.is_dir()

    def _follow(self, installation: Installation, variables: dict[str, str]) -> _Ended:
        """The end of openpi, which this starts and reads."""
        job = self._run.path / FOLDER / JOB
        command = [
            str(installation.python),
            str(Path(openpi_entry.__file__)),
            str(job.absolute()),
            *(["--any-commit"] if self._any_commit else []),
        ]
        environment = (
            os.environ | variables | {openpi_entry.PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        )
        # openpi must not find the harness's package beside entry.py: the script's directory would come first
        # on its path.
        environment |= {"PYTHONSAFEPATH": "1"}
        environment.pop("PYTHONPATH", None)
        # Upstream keeps compiled programs in ~/.cache/jax. On the CPU, a program that its jax 0.5.3 reads
        # back from there computes other losses than the one it compiled (2.0396 and 1.9833 at step 0 of the
        # smoke recipe). A run would depend on whether there was one before it.
        environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        words: deque[str] = deque(maxlen=_LAST_WORDS)
        with (
            os.fdopen(
                open_to_write(self._run.path / FOLDER / "console.log", append=True), "r+b", buffering=0
            ) as log,
            subprocess.Popen(
                command, cwd=installation.root, env=environment, start_new_session=True, **_PIPES
            ) as child,
        ):
            try:
                self._listen(child, log, words)
                returncode = child.wait()
            finally:
                # The processes of its loader belong to its session.
                _kill_group(child.pid)
        return _Ended(returncode, bool(self._stop), list(words))

    def _listen(self, child: subprocess.Popen[bytes], log: Any, words: deque[str]) -> None:
        """Reads until openpi has closed its console or has ended."""
        assert child.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(_POLL_S):
                    data = os.read(child.stdout.fileno(), 1 << 16)
                    *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
                    if not data:
                        lines.append(rest)
                    for line in (
                        for_terminal(redact(text.decode(errors="replace"))) for text in lines if text.strip()
                    ):
                        log.write(line.encode() + b"\n")
                        words.append(line)
                        self._read(line, child)
                    if not data:
                        return
                elif child.poll() is not None:
                    # A process of its loader may still hold the console open.
                    return
                self._look()
                if self._stop and child.poll() is None and self._may_stop():
                    child.terminate()

    def _read(self, text: str, child: subprocess.Popen[bytes]) -> None:
        # Whatever is imported before may print what begins like it.
        if self._told is None and text.startswith(('{"commit"', f'{{"{openpi_entry.REFUSED}"')):
            self._start(json.loads(text))
            return
        # The lines after a log record belong to it: the shapes of all parameters, an array.
        self._is_chatter = bool(_CHATTER.match(text)) or (self._is_chatter and text.startswith((" ", "[")))
        if not self._is_chatter:
            os.write(2, text.encode() + b"\n")
        before = self._console.phase
        line = self._console.read(text, time.time())
        if self._console.phase != before:
            self._channel.phase(self._console.phase)
        if line is not None:
            self._keep(line, child)

    def _start(self, told: dict[str, Any]) -> None:
        """Takes the first line of openpi's entry, before training begins, and opens the run's files.

        Raises: HarnessError of a refusal.
        """
        from harness.train.metrics import MetricsFile

        self._told = told
        if openpi_entry.REFUSED in told:
            raise HarnessError(**told[openpi_entry.REFUSED])
        check_wandb(told["packages"].get("wandb", ""))
        job, run = self._job, self._run
        known = run.read(Manifest)
        if self._begun and known is not None:
            manifest, note = resumed(known, self._begun, job.recipe.train.global_batch)
            self._channel.warn(note)
        else:
            manifest = describe_run(run, job.recipe, job.plan, (job.dataset, job.stats), told, self._weights)
        run.write(manifest)
        assert manifest.upstream is not None
        for note in [*manifest.upstream.unlike_lock, *manifest.upstream.notes] if not self._begun else []:
            self._channel.warn(f"not as upstream has it: {note}")
        self._channel.say(
            f"openpi {told['commit'][:12]} trains {told['parameters_trained']:,} of"
            f" {told['parameters_total']:,} parameters on {told['device']}"
        )
        self._metrics = MetricsFile(run.metrics, start_step=self._begun)
        self._records = Records(run.checkpoints, job.recipe, told["commit"])

    def _keep(self, line: Metrics, child: subprocess.Popen[bytes]) -> None:
        """Writes a line of metrics. The line of step 0 also shows whether the weights are the released ones.

        Raises: HarnessError "loss-not-finite".
        """
        if not is_finite(line):
            child.kill()
            raise HarnessError(
                "loss-not-finite",
                f"openpi's loss or a norm is not finite at step {line.step}, so openpi was stopped: it"
                " would have gone on and saved",
                got=(
                    f"loss {line.loss}, grad_norm {line.grad_norm}, param_norm {line.param_norm} (mean over"
                    f" {line.mean_of_steps} steps)"
                ),
                need="finite numbers",
                fix=(
                    "lower train.optimizer.schedule.peak, or look at harness stats; harness inspect --deep"
                    " tells whether the last checkpoint is sound"
                ),
            )
        if self._metrics is not None:
            self._metrics.write([line])
        self._channel.step(line, self._job.recipe.train.steps)
        manifest = (
            self._run.read(Manifest)
            if line.step == 0 and self._job.recipe.weights.source is not None
            else None
        )
        if manifest is not None:
            verdict, sentence = norm_verdict(self._job.recipe.model, line.param_norm)
            (self._channel.warn if verdict == "differs" else self._channel.say)(sentence)
            self._run.write(
                manifest.model_copy(
                    update={"weights": manifest.weights | {"fingerprint": verdict, "param_norm": sentence}}
                )
            )

    def _look(self) -> None:
        for step in self._records.look() if self._records is not None else []:
            self._channel.say(
                f"openpi has saved step {step}, the state after {steps_taken(step, 'openpi')} steps"
            )

    def _may_stop(self) -> bool:
        """True if no save is under way, or if one has been for too long."""
        return not is_saving(self._run.checkpoints) or time.monotonic() - self._stop[0] > _SAVE_S

    def _end(self, ended: _Ended) -> int:
        done, steps = resumes_after(self._run.checkpoints, "openpi"), self._job.recipe.train.steps
        if ended.stopped:
            lost = self._console.next_step - done
            saved = f"the last whole checkpoint is after {done} steps" if done else "no checkpoint was whole"
            self._channel.warn(
                f"openpi saves nothing when it is stopped: {saved}, and {max(0, lost)} steps since then are"
                " lost"
            )
            self._channel.end(done, finished=done >= steps)
            return 0
        if ended.returncode == 0:
            self._channel.end(max(done, self._whole_run()), finished=True)
            return 0
        exhausted = next((text for text in ended.words if "RESOURCE_EXHAUSTED" in text), None)
        if exhausted is not None:
            self._channel.exhausted(exhausted)
            return 2
        from harness.checkpoint.failures import no_space

        full = next((text for text in ended.words if no_space(text)), None)
        if full is not None:
            fix = (
                "free space there; the interrupted save is recognized, and harness inspect --clean removes"
                " it; then --resume"
            )
            raise HarnessError(
                "disk-full",
                f"{self._run.path} is on a full disk: openpi could not save",
                got=full[:300],
                fix=fix,
            )
        return _end_likewise(ended.returncode)

    def _whole_run(self) -> int:
        """1 for a run that ended well after a single step, else 0. Upstream calls its only checkpoint 0."""
        return 1 if whole_steps(self._run.checkpoints, "openpi") == [0] else 0


def _end_likewise(returncode: int) -> int:
    """Ends this process as openpi ended, by the same signal if there was one.

    A shell in between turns a signal into a number above 128.
    """
    from harness.supervise.signals import end_by

    number = (
        -returncode
        if returncode < 0
        else returncode - _SIGNALS_OF_A_SHELL
        if returncode > _SIGNALS_OF_A_SHELL
        else 0
    )
    if number in set(signal.Signals):
        end_by(number)
    return returncode if returncode > 0 else 1


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    sys.exit(main())
