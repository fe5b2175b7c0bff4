"""Slurm for real, on this machine: a controller and several nodes, without systemd, cgroups or a root user.

    python -m tests.support.slurm [--nodes 2]    starts one, says how to use it, and ends with Ctrl-C

The nodes are `slurmd` processes of this machine. The first is called localhost: the coordinator of a run is
looked up by the name of its node, and that name every machine knows. All run as the present user, so that a
container that gives no capability can run them too.

Needs Debian's or Ubuntu's packages slurm-wlm and munge. Source: slurm.conf(5), munged(8).
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
INSTALL = "apt-get install --no-install-recommends slurm-wlm munge"
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_UP_S, _END_S, _AGAIN_S = 30, 20, 4

_CONF = """\
ClusterName=harness
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={home}/munge.socket
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmdSpoolDir={home}/spool.%n
SlurmdPidFile={home}/slurmd.%n.pid
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=300
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why Slurm cannot run here; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"Slurm is not installed ({', '.join(missing)}): {INSTALL}"
    try:
        # As its daemons ask for the address that they listen at.
        socket.getaddrinfo(None, 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG | socket.AI_PASSIVE)
    except OSError:
        return "Slurm's daemons find no address: this container has no network but the loopback"
    return None


class Slurm:
    """A cluster that runs. `environment` is what its commands need; `home` has its logs."""

    def __init__(self, home: Path, nodes: Sequence[str]) -> None:
        self.home, self.nodes = home, tuple(nodes)
        self._pending: dict[str, float] = {}
        self.environment = {**os.environ, "PATH": _PATH, "SLURM_CONF": str(home / "slurm.conf")}

    def ask(self, *command: str, **more: str) -> str:
        """What a command prints. Its stderr is in the error of one that fails."""
        done = subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The job's state as scontrol says it, such as RUNNING.

        A job that was requeued need not wait two minutes, but some seconds: while a node still ends the start
        before, slurmd refuses the next one, and the job is FAILED.
        """
        state = self.field(job, "JobState")
        if state != "PENDING":
            self._pending.pop(job, None)
        elif time.monotonic() - self._pending.setdefault(job, time.monotonic()) > _AGAIN_S:
            self._hurry(job)
        return state

    def field(self, job: str, name: str) -> str:
        told = self.ask("scontrol", "show", "job", job)
        return next(word.partition("=")[2] for word in told.split() if word.startswith(f"{name}="))

    def _hurry(self, job: str) -> None:
        subprocess.run(
            ["scontrol", "update", f"JobId={job}", "StartTime=now"],
            env=self.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )

    def logs(self) -> str:
        """The last lines that the daemons wrote, for the message of a failed test."""
        return "\n".join(
            f"{path.name}: " + "\n".join(path.read_text(errors="replace").splitlines()[-15:])
            for path in sorted(self.home.glob("*.log"))
        )


@contextmanager
def running(nodes: int = 2, cpus: int = 2, memory_mb: int = 8000) -> Iterator[Slurm]:
    """A cluster of `nodes` nodes, each of which believes that it has `cpus` and `memory_mb`."""
    names = ["localhost", *(f"n{number}" for number in range(2, nodes + 1))]
    # A socket's path has at most 107 bytes, so this is no directory of a test.
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    slurm = Slurm(home, names)
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, home, ignore_errors=True)
        _write(slurm, cpus, memory_mb)
        _start(slurm, ending, "munged", *_munge(home))
        _wait(slurm, (home / "munge.socket").exists, "munged")
        _start(slurm, ending, "slurmctld", "-D")
        for name in names:
            _start(slurm, ending, "slurmd", "-D", "-N", name, log=f"slurmd.{name}")
        _wait(slurm, lambda: _idle(slurm) == nodes, "the nodes")
        try:
            yield slurm
        finally:
            _cancel_all(slurm)


def _write(slurm: Slurm, cpus: int, memory_mb: int) -> None:
    home = slurm.home
    (home / "state").mkdir()
    lines = []
    # Slurm takes a table of the one node "localhost" for every name, so that one comes last.
    for name in reversed(slurm.nodes):
        (home / f"spool.{name}").mkdir()
        lines.append(
            f"NodeName={name} NodeAddr=127.0.0.1 Port={_free_port()} CPUs={cpus} RealMemory={memory_mb}"
        )
    text = _CONF.format(
        port=_free_port(), user=pwd.getpwuid(os.getuid()).pw_name, home=home, nodes="\n".join(lines)
    )
    (home / "slurm.conf").write_text(text)
    key = home / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)


def _munge(home: Path) -> list[str]:
    # --force: the directories above the socket are not as closed as a system's.
    options = ["--foreground", "--force", f"--key-file={home}/munge.key", f"--socket={home}/munge.socket"]
    return [*options, *(f"--{name}-file={home}/munged.{name}" for name in ("pid", "log", "seed"))]


def _start(slurm: Slurm, ending: ExitStack, name: str, *options: str, log: str | None = None) -> None:
    """Starts a daemon in the foreground. `ending` ends it and waits for it."""
    with (slurm.home / f"{log or name}.log").open("wb") as file:
        process = subprocess.Popen(
            [shutil.which(name, path=_PATH) or name, *options],
            env=slurm.environment,
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end() -> None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ending.callback(end)


def _wait(slurm: Slurm, done: object, what: str) -> None:
    assert callable(done)
    deadline = time.monotonic() + _UP_S
    while not done():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come up in {_UP_S} s\n{slurm.logs()}")
        time.sleep(0.1)


def _idle(slurm: Slurm) -> int:
    try:
        told = slurm.ask("sinfo", "--noheader", "--Node", "--format=%N %t")
    except AssertionError:
        return 0
    return sum(line.endswith(" idle") for line in told.splitlines())


def _cancel_all(slurm: Slurm) -> None:
    """Ends every job, so that no step outlives the daemons."""
    deadline = time.monotonic() + _END_S
    while (jobs := slurm.ask("squeue", "--noheader", "--format=%A").split()) and time.monotonic() < deadline:
        # One that has ended meanwhile is an error to scancel.
        for signal_ in (("--signal=KILL",), ()):
            with suppress(AssertionError):
                slurm.ask("scancel", *signal_, *jobs)
        time.sleep(0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=2)
    options = parser.parse_args()
    reason = why_not()
    if reason is not None:
        raise SystemExit(reason)
    with running(options.nodes, options.cpus) as slurm:
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}", flush=True)
        print(slurm.ask("sinfo"), flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
