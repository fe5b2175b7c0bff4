"""serving.json of a server that has ended."""

from __future__ import annotations

from harness.artifacts import Serving
from harness.checkpoint.locate import Located
from harness.predict.predict import Device
from harness.serve.open import Opened, Wish
from harness.serve.record import Recorder
from harness.serve.tally import Tally


def summary(
    located: Located,
    opened: Opened,
    wish: Wish,
    on: Device,
    tally: Tally,
    recorder: Recorder | None,
    ended_by: str,
) -> Serving:
    """What the server did. `ended_by` names the signal that ended it."""
    return Serving(
        checkpoint=str(located.path),
        checkpoint_sha256=opened.sha256,
        step=located.step,
        device=on.name,
        sampling_steps=wish.steps,
        batch=wish.batch,
        seconds=tally.seconds,
        connections=tally.connections,
        most_clients=tally.most_clients,
        answered=tally.outcomes["answered"],
        refused=tally.outcomes["refused"],
        failed=tally.outcomes["failed"],
        lost=tally.outcomes["lost"],
        prompts_cut=tally.prompts_cut,
        rows_a_batch=tally.rows_a_batch,
        timed=tally.timed,
        stages=tally.stages(),
        deviations=opened.deviations,
        attention=opened.attention,
        record=None if recorder is None else recorder.summary(),
        ended_by=ended_by,
    )
