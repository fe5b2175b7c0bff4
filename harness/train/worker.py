"""The process that trains: `python -m harness.train.worker RUN [--without-checkpoints]`.

It carries out what the files of the run say. Its parent (harness/supervise/run.py) has planned and checked
the run, has set the variables that JAX reads at its import, and supervises this process. Every event is a
line of JSON on stdout. What libraries write to stdout goes to stderr.

Where a launcher has started it on several machines (harness/run/cluster.py), it joins the others first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.run.cluster import Member, member_of
from harness.run.directory import RunDir
from harness.run.job import Job, job_of
from harness.run.peers import ALONE, Peers
from harness.supervise.channel import Channel, private_stdout
from harness.supervise.signals import die_with_supervisor


def main() -> int:
    """The exit status: 0 if the run ended as planned or was asked to stop, else 2.

    With 2, an event gives the reason.
    """
    die_with_supervisor()
    channel = Channel(private_stdout())
    try:
        member = member_of(os.environ)
        if member is not None:
            return _among_others(member, channel)
        return _train(job_of(RunDir(Path(sys.argv[1]))), channel, ALONE)
    except HarnessError as error:
        channel.error(error)
        return 2
    except MemoryError as error:
        channel.host_memory(str(error))
        return 2
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        channel.exhausted(str(error).splitlines()[0])
        return 2


def _train(job: Job, channel: Channel, peers: Peers) -> int:
    from harness.train import device

    channel.phase("start")
    device.start()
    from harness.train.loop import train

    outcome = train(job._replace(keeps="--without-checkpoints" not in sys.argv), channel, peers)
    channel.end(outcome.step, finished=outcome.finished)
    return 0


def _among_others(member: Member, channel: Channel) -> int:
    """As `_train`, together with the other processes of the run.

    A process that fails does not wait for JAX's own end, which waits for all.
    """
    channel.phase("start")
    from harness.train.cluster import end, join
    from harness.train.shared_directory import check_shared

    peers = join(member, channel)
    try:
        run = RunDir(Path(sys.argv[1]))
        check_shared(run.path, peers)
        status = _train(job_of(run), channel, peers)
        peers.close()
        return status
    except HarnessError as error:
        channel.error(error)
        peers.leave(error)
        end(2)
    except Exception as error:
        lost = peers.lost(error)
        if lost is not None:
            channel.error(lost)
            end(2)
        said = f"{type(error).__name__}: {str(error)[:300]}"
        fix = "the lines above are what it wrote; go on with --resume once the cause is mended"
        peers.leave(HarnessError("trainer-failed", "its trainer failed", got=said, fix=fix))
        raise
    return 2


if __name__ == "__main__":
    sys.exit(main())
