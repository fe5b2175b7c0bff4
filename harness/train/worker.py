"""The process that trains: `python -m harness.train.worker RUN [--without-checkpoints]
[--profile=STEPS]`.

It carries out what the files of the run say. Its parent (harness/supervise/run.py) has planned and checked
the run, has set the variables that JAX reads at its import, and supervises this process. Every event is a
line of JSON on stdout. What libraries write to stdout goes to stderr.

Where a launcher has started it on several machines (harness/run/cluster.py), it joins the others first.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from harness.errors import HarnessError
from harness.run.cluster import Member, member_of
from harness.run.directory import RunDir
from harness.run.ending import end_quickly
from harness.run.job import Job, job_of
from harness.run.peers import ALONE, Peers
from harness.supervise.channel import Channel, private_stdout
from harness.supervise.signals import die_with_supervisor, end_at_once


def main() -> int:
    """The exit status: 0 if the run ended as planned or was asked to stop, else 2.

    With 2, an event gives the reason.
    """
    die_with_supervisor()
    channel = Channel(private_stdout())
    try:
        member = member_of(os.environ)
        if member is None:
            return _train(job_of(RunDir(Path(sys.argv[1]))), channel, ALONE)
        status = _among_others(member, channel)
    except Exception as error:
        told = _tell(channel, error)
        if told is None:
            raise
        return told
    if status:
        # JAX's own end would wait for processes that do not come.
        end_at_once(status)
    return status


def _tell(channel: Channel, error: Exception) -> int | None:
    """The exit status of a failure that is now the last event. None for an error that nobody foresaw."""
    if isinstance(error, HarnessError):
        channel.error(error)
    elif isinstance(error, MemoryError):
        channel.host_memory(str(error))
    elif "RESOURCE_EXHAUSTED" in str(error):
        channel.exhausted(str(error).splitlines()[0])
    else:
        return None
    return 2


def _train(job: Job, channel: Channel, peers: Peers) -> int:
    from harness.train import device

    channel.phase("start")
    device.start()
    from harness.train.loop import train

    job = job._replace(keeps="--without-checkpoints" not in sys.argv, profile=_profile(sys.argv))
    outcome = train(job, channel, peers)
    channel.end(outcome.step, finished=outcome.finished)
    return 0


def _profile(arguments: list[str]) -> int:
    """The number of steps to trace."""
    return next((int(word[10:]) for word in arguments if word.startswith("--profile=")), 0)


def _among_others(member: Member, channel: Channel) -> int:
    """As `_train`, together with the other processes of the run, which learn why this one fails."""
    channel.phase("start")
    from harness.run.shared_directory import check_shared
    from harness.train.cluster import join

    peers = join(member, channel)
    try:
        run = RunDir(Path(sys.argv[1]))
        check_shared(run.path, peers)
        status = _train(job_of(run), channel, peers)
        peers.close()
        return status
    except Exception as error:
        cause = _maybe_lost(error)
        lost = None if cause is None else peers.lost(cause)
        told = _tell(channel, lost or error)
        if told is None:
            traceback.print_exc()
        peers.leave(lost or _note(error))
        return told or 1


def _maybe_lost(error: Exception) -> Exception | None:
    """What may come of another process that is gone; None for an error of this one's own.

    A save fails, too, where its peers do not come.
    """
    if not isinstance(error, HarnessError):
        return error
    cause = error.__cause__ if error.code == "save-failed" else None
    return cause if isinstance(cause, Exception) else None


def _note(error: Exception) -> HarnessError:
    if isinstance(error, HarnessError):
        return error
    return HarnessError(
        "trainer-failed",
        "its trainer failed",
        got=f"{type(error).__name__}: {str(error)[:300]}",
        fix="look at the log of that process; go on with --resume once the cause is mended",
    )


if __name__ == "__main__":
    end_quickly()
    sys.exit(main())
