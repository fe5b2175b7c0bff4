"""A run without a model, for tests of engines: it takes the words of `harness train`, joins, and counts.

Its state is a chain of hashes, so a step that was left out or done twice is seen at the end. Process 0 saves
it every fifth step. Each process writes its number and its id into the run, for whoever wants to kill it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from harness.errors import HarnessError
from harness.run.cluster import member_of
from harness.run.directory import write_atomic
from harness.supervise.channel import Channel, private_stdout
from harness.supervise.signals import end_at_once

EVERY, STEP_S = 5, 0.1


def chain(steps: int) -> str:
    """What a run of so many steps has in the end."""
    digest = ""
    for step in range(1, steps + 1):
        digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
    return digest


def main() -> int:
    channel = Channel(private_stdout())
    from harness.train.cluster import join, stop_asked

    options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
    run, steps = Path(options["run"]), int(options["steps"])
    member = member_of(os.environ)
    assert member is not None
    state = run / "checkpoints" / "state.json"
    try:
        peers = join(member, channel, limit_s=60)
        (run / f"pid.{member.number}").write_text(str(os.getpid()))
        step, digest = 0, ""
        if state.exists():
            step, digest = json.loads(state.read_text())
        begun = step
        print(f"process {member.number} begins at step {step}", file=sys.stderr, flush=True)

        def save() -> None:
            write_atomic(state, json.dumps([step, digest]))

        peers.first(lambda: write_atomic(run / "manifest.json", "{}"))
        with stop_asked(peers) as asked:
            while step < steps and not asked():
                peers.barrier()
                time.sleep(STEP_S)
                step += 1
                digest = hashlib.sha256(f"{digest}{step}".encode()).hexdigest()
                if step % EVERY == 0:
                    peers.first(save)
        if step > begun:
            peers.first(save)
        print(f"process {member.number} ends at step {step}", file=sys.stderr, flush=True)
        peers.barrier()
        peers.close()
    except HarnessError as error:
        print(error, file=sys.stderr, flush=True)
        end_at_once(2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
