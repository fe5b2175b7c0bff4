"""A process that joins the others and then waits for them, or as a second argument says: FAIL or nothing."""

from __future__ import annotations

import os
import sys
import time

from harness.errors import HarnessError
from harness.run.cluster import member_of
from harness.supervise.channel import Channel, private_stdout
from harness.supervise.signals import end_at_once


def main() -> int:
    channel = Channel(private_stdout())
    from harness.train.cluster import join

    member = member_of(os.environ)
    assert member is not None
    limit_s, *fails = sys.argv[1:]
    try:
        peers = join(member, channel, limit_s=int(limit_s))
        peers.barrier()
        channel.say("joined")
        if fails:
            raise HarnessError("disk-full", "the disk is full", got="0 B", need="1 GiB", fix="free space")
        if member.number == member.processes - 1:
            time.sleep(200)
        peers.barrier()
    except HarnessError as error:
        channel.error(error)
        if error.code == "disk-full":
            peers.leave(error)
        end_at_once(2)
    return 0


sys.exit(main())
