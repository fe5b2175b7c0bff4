"""The process that trains: `python -m harness.train.worker RUN [--without-checkpoints]`.

It carries out what the files of the run say. Its parent (harness/supervise/run.py) has planned and checked
the run, has set the variables that JAX reads at its import, and supervises this process. Every event is a
line of JSON on stdout. What libraries write to stdout goes to stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.run.directory import RunDir
from harness.run.job import job_of
from harness.supervise.channel import Channel, private_stdout
from harness.supervise.signals import die_with_supervisor


def main() -> int:
    """The exit status: 0 if the run ended as planned or was asked to stop, else 2.

    With 2, an event gives the reason.
    """
    die_with_supervisor()
    channel = Channel(private_stdout())
    try:
        job = job_of(RunDir(Path(sys.argv[1])))
        from harness.train import device

        channel.phase("start")
        device.start()
        from harness.train.loop import train

        outcome = train(job._replace(keeps="--without-checkpoints" not in sys.argv), channel)
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
    channel.end(outcome.step, finished=outcome.finished)
    return 0


if __name__ == "__main__":
    sys.exit(main())
