"""Restores a step over all devices of all processes and saves it again: RECIPE CHECKPOINTS STEP FSDP TARGET.

It saves in the background to TARGET, and streamed to TARGET-streamed. It compiles no step. With a run as a
sixth argument it says what the step's fingerprint and bytes are, and measures the saves of the run on the
held-out episodes, as one process does.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from harness.recipe.load import load_recipe
from harness.run.cluster import member_of
from harness.run.directory import RunDir
from harness.run.job import job_of
from harness.run.peers import ALONE, Peers
from harness.supervise.channel import Channel, private_stdout


def main() -> None:
    channel = Channel(private_stdout())
    from harness.checkpoint.store import Store
    from harness.train.cluster import join
    from harness.train.compiled import compile_step
    from harness.train.devices import layout_here
    from harness.train.held_out_fill import fill
    from harness.train.setup import setup_of
    from harness.train.snapshot import restore, save
    from tests.support.members import DEVICES, levers

    given, source, step, fsdp, target, *run = sys.argv[1:]
    member = member_of(os.environ)
    peers: Peers = ALONE if member is None else join(member, channel)
    recipe = load_recipe(given)
    chosen = levers(recipe, DEVICES, int(fsdp))
    setup = setup_of(recipe, layout_here(chosen, peers, channel))
    if run:
        compiled = compile_step(setup, chosen)
        channel.say(json.dumps([compiled.program_sha256, compiled.bytes]))
        fill(job_of(RunDir(Path(run[0]))), channel)
    state = restore(Store(source, keep_every_steps=1, peers=peers), setup, int(step))
    record = {"recipe_sha256": recipe.sha256()}
    for directory, streamed in ((target, False), (f"{target}-streamed", True)):
        store = Store(directory, keep_every_steps=1, peers=peers, streamed=streamed)
        save(store, state, step=int(step), norm_stats_json="{}", asset_id="sample", record=record)
        store.close()


main()
