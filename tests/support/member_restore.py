"""Restores a step over all devices of all processes and saves it again: CHECKPOINTS STEP FSDP TARGET.

It compiles no step. With `lower` as a fifth argument it also says the fingerprint of the lowered step.
"""

from __future__ import annotations

import os
import sys

from harness.run.cluster import member_of
from harness.run.peers import ALONE, Peers
from harness.supervise.channel import Channel, private_stdout


def main() -> None:
    channel = Channel(private_stdout())
    from harness.checkpoint.store import Store
    from harness.train.cluster import join
    from harness.train.compiled import lower_step
    from harness.train.devices import layout_here
    from harness.train.setup import setup_of
    from harness.train.snapshot import restore, save
    from tests.support.members import DEVICES, levers, recipe_of

    source, step, fsdp, target, *more = sys.argv[1:]
    member = member_of(os.environ)
    peers: Peers = ALONE if member is None else join(member, channel)
    recipe = recipe_of(int(step))
    chosen = levers(recipe, DEVICES, int(fsdp))
    setup = setup_of(recipe, layout_here(chosen, peers, channel))
    if more:
        channel.say(f"lowered {lower_step(setup, chosen)[1]}")
    state = restore(Store(source, keep_every_steps=1, peers=peers), setup, int(step))
    store = Store(target, keep_every_steps=1, peers=peers)
    record = {"recipe_sha256": recipe.sha256()}
    save(store, state, step=int(step), norm_stats_json="{}", asset_id="sample", record=record)
    store.close()


main()
