"""A training run of several processes before their trainers start: process 0 prepares it, the others wait.

Process 0 tells the others which run it is, hears of their machines, prepares the run as it would alone, and
tells them when its files are whole. If it ends before that, they end as it does.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.artifacts import Dataset, HostReport, Hosts, NormStats, Plan
from harness.errors import HarnessError
from harness.flow.chain import signature_of
from harness.received.files import ARTIFACT_BYTES, read_received
from harness.received.text import word
from harness.run.cluster import member_of
from harness.run.directory import RECIPE, RunDir, runs_root, sha256_json
from harness.run.meeting import meeting
from harness.run.peers import ALONE, Peers
from harness.run.shared_directory import check_shared

if TYPE_CHECKING:
    from harness.artifacts import Machine
    from harness.run.job import Job
    from harness.show.progress import Progress

# The files by which a process carries its part of a run out.
_FILES = (RECIPE, Plan.FILE, Dataset.FILE, NormStats.FILE)
# A network's file system may show the old content of a file for so long (NFS's acregmax is 60 s).
_LATE_S = 90.0
_DATA, _READY, _EXIT = "data", "ready", "exit"


@contextmanager
def all_processes(console: Progress) -> Iterator[Peers]:
    """The peers of this process while the run is prepared. Alone where no launcher started several.

    Raises: HarnessError of `member_of` and of `meeting`.
    """
    member = member_of(os.environ)
    if member is None:
        yield ALONE
        return
    with meeting(member, socket.gethostname(), console.say) as peers:
        yield peers


class Lead:
    """Process 0 of several, towards the others. For a run of one process it does nothing."""

    def __init__(self, peers: Peers, net: float | None = None) -> None:
        self.peers, self._net = peers, net
        self.hosts: list[HostReport] = []

    def begin(self, run: RunDir, machine: Machine, device: str | None) -> None:
        """Tells the others the run, checks that all see its directory, and hears of their machines.

        Raises: HarnessError "directory-not-shared", "peer-lost".
        """
        if self.peers.count == 1:
            return
        self.peers.agree(json.dumps({"run": run.path.absolute().name}))
        check_shared(run.path, self.peers)
        self.hosts = _reports(self.peers, machine, device)
        run.write(Hosts(hosts=self.hosts))

    def look_at(self, run: RunDir, dataset: Dataset) -> None:
        """Has every process look whether its machine has the same data."""
        if self.peers.count == 1:
            return
        parts = [(part.path, part.sha256, _signature(Path(part.path))) for part in dataset.parts]
        self.peers.agree(json.dumps({_DATA: parts}))
        said = self.peers.gather("")
        self.hosts = [
            host.model_copy(update={"data": answer or None})
            for host, answer in zip(self.hosts, said, strict=True)
        ]
        run.write(Hosts(hosts=self.hosts))

    def asked(self) -> dict[str, Any]:
        """What a plan for the machines of all is asked beside the rest."""
        if not self.hosts:
            return {}
        # The doctor says if one machine would be faster, and --allow lets that pass.
        return {"hosts": tuple(self.hosts), "net": self._net, "slower": True}

    def end(self, status: int) -> None:
        """Has the others end with the exit status of process 0, which has said why."""
        if self.peers.count == 1:
            return
        self.peers.agree(json.dumps({_EXIT: status}))

    def ready(self, run: RunDir) -> None:
        """Lets the others go on: the files of the run are whole."""
        if self.peers.count == 1:
            return
        self.peers.agree(json.dumps({_READY: _digests(run.path)}))
        self.peers.barrier()


def follow(
    peers: Peers, console: Progress, run: Path | None, name: str | None, device: str | None
) -> tuple[Job, Machine]:
    """The job and the machine of a process that is not the first, once process 0 has prepared the run.

    Raises: HarnessError of process 0, "peer-lost", "directory-not-shared"; typer.Exit as process 0.
    """
    from harness.probe.machine import probe
    from harness.run.job import job_of

    told = json.loads(peers.agree(""))
    # Each process finds the directory by the options that it was given.
    own = RunDir(run if run is not None else runs_root() / (name or str(told["run"])))
    own.check_own()
    check_shared(own.path, peers)
    machine = probe([own.path])
    _reports(peers, machine, device)
    console.say(f"run {own.path}: waiting for process 0, which prepares it")
    while True:
        told = json.loads(peers.agree(""))
        if _EXIT in told:
            console.warn("process 0 has ended this run before it began; its log says why")
            raise typer.Exit(int(told[_EXIT]))
        if _READY in told:
            break
        peers.gather(_unlike(told[_DATA]))
    _see(own.path, told[_READY])
    peers.barrier()
    return job_of(own), machine


def of_process(job: Job, peers: Peers) -> Job:
    """The job as this process carries it out: on its own cards."""
    member = member_of(os.environ)
    if peers.count == 1 or member is None:
        return job
    own = job.plan.of_process(peers.index)
    if member.local_devices is not None:
        # They are numbers among the devices that the launcher has made visible, so those stay visible.
        own = own.model_copy(update={"device_uuids": [], "device_uuid": None})
    return job._replace(plan=own)


def _reports(peers: Peers, machine: Machine, device: str | None) -> list[HostReport]:
    """What each process says of its machine, for process 0."""
    from harness.probe.member import report_of

    member = member_of(os.environ)
    assert member is not None
    platform = "cpu" if device == "cpu" or not machine.usable_gpus else "cuda"
    own = report_of(member, socket.gethostname(), machine, platform=platform)
    # Reading the software takes seconds. After it all answer at once, so that their clocks can be compared.
    peers.barrier()
    own = own.model_copy(update={"clock": time.time()})
    said = peers.gather(own.model_dump_json())
    if peers.index:
        return []
    return [HostReport.model_validate_json(text) for text in said]


def _unlike(parts: list[tuple[str, str, str]]) -> str:
    """What is wrong with the data on this machine, compared with what process 0 has read; empty if nothing.

    `parts` are the path, the hash and the signature of each dataset. Where names, sizes and times of all
    files are the same, it is one directory that both see, and its bytes are not read again.
    """
    from harness.data.dataset import content_hash

    for name, sha256, signature in parts:
        path = Path(name)
        if not path.is_dir():
            return f"{path} is not there"
        try:
            if _signature(path) == signature:
                continue
            found, _ = content_hash(path)
        except (HarnessError, OSError) as error:
            return f"{path} cannot be read: {error}"
        if found != sha256:
            return f"{path} holds other data: sha256 {found[:16]}, process 0 has {sha256[:16]}"
    return ""


def _signature(path: Path) -> str:
    return sha256_json(signature_of(path))


def _digests(run: Path) -> dict[str, str]:
    from hashlib import sha256

    return {name: sha256(read_received(run / name, run, ARTIFACT_BYTES)).hexdigest() for name in _FILES}


def _see(run: Path, wanted: dict[str, str]) -> None:
    """Waits until this machine sees the files as process 0 has written them.

    Raises: HarnessError "directory-not-shared".
    """
    deadline = time.monotonic() + _LATE_S
    while True:
        try:
            found = _digests(run)
        except OSError:
            found = {}
        if found == wanted:
            return
        if time.monotonic() > deadline:
            late = [name for name in _FILES if found.get(name) != wanted.get(name)]
            raise HarnessError(
                "directory-not-shared",
                f"{run} does not show what process 0 has written",
                got=f"another {' and '.join(late)}, after {_LATE_S:.0f} s",
                need="one directory that all machines share",
                fix=f"put {word(run.name)} on a file system that is mounted on every machine (NFS, Lustre)",
            )
        list(run.iterdir())
        time.sleep(0.5)
