"""Where the fixtures stand: stoves, cabinets, racks. LIBERO's initial states do not say it.

Each reset moves fixtures by numpy's global generator, and resets append to a list of samplers that draw from
it. So the place of a fixture in openpi's loop depends on every reset before it. An episode is the same in any
order and in any process because its reset begins where openpi's loop begins it; the table has the places that
come of it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.simulate.frames import Array
from harness.simulate.protocol import Values

TABLE = Path(__file__).parent / "scenes.json"
# Position (m) and quaternion (w, x, y, z) of a body in its parent, as MuJoCo's model has them.
POSE = 7

Poses = dict[str, Array]


def bodies(domain: Any) -> dict[str, int]:
    """The body of each fixture by its name, in LIBERO's order. `domain` is LIBERO's environment itself."""
    return {name: domain.obj_body_id[name] for name in domain.fixtures_dict if name in domain.obj_body_id}


def poses(domain: Any) -> Poses:
    """The pose [7] of each fixture, as it stands now."""
    model = domain.sim.model
    return {
        name: np.concatenate((model.body_pos[body], model.body_quat[body]))
        for name, body in bodies(domain).items()
    }


def write(domain: Any, wanted: Mapping[str, Array]) -> None:
    """Move each fixture to its pose. It takes effect with the next forward pass.

    Raises: ValueError if the fixtures are others than the environment's.
    """
    there = bodies(domain)
    if set(there) != set(wanted):
        raise ValueError(f"poses of {sorted(wanted)} for fixtures {sorted(there)}")
    for name, body in there.items():
        domain.sim.model.body_pos[body] = wanted[name][:3]
        domain.sim.model.body_quat[body] = wanted[name][3:]


def serial(env: Any, seed: int) -> Iterator[Poses]:
    """The poses of openpi's loop, episode by episode: seeded once, then reset and reset again.

    `env` is new; nothing else may reset it. numpy's generator is put back between two episodes, so others may
    use it meanwhile.
    """
    env.seed(seed)
    while True:
        env.reset()
        found = poses(env.env)
        state = np.random.get_state()
        yield found
        np.random.set_state(state)


class Before(NamedTuple):
    """What a reset of openpi's loop begins with: numpy's generator, and how often LIBERO's samplers stand in
    their list.
    """

    generator: Any
    times: int


def resets(domain: Any, seed: int) -> Iterator[Before]:
    """What each reset of openpi's loop begins with, episode by episode, without resetting.

    A reset builds the whole model anew and draws a few numbers. Only the drawing is done here, some
    milliseconds each, on a model whose bodies are put back where the scene's file has them. The fixtures of
    the real reset then stand where the table says. More than that hangs on it: MuJoCo's solver begins from
    the accelerations that the reset has left, so the objects' random places there decide last bits later.

    `domain` is left in disorder: reset it before use. numpy's generator is put back between two episodes.
    """
    import mujoco
    from robosuite.utils.errors import RandomizationError

    samplers = domain.object_property_initializers
    once = list(samplers)
    built = mujoco.MjModel.from_xml_string(domain.model.get_xml())
    generator, times = np.random.RandomState(seed).get_state(), 1
    while True:
        yield Before(generator, times)
        np.random.set_state(generator)
        drawn = False
        while not drawn:
            # Building the model appends the samplers again, also when LIBERO tries a second time.
            times += 1
            samplers[:] = once * times
            domain.sim.reset()
            domain.sim.model.body_pos[:] = built.body_pos
            domain.sim.model.body_quat[:] = built.body_quat
            with contextlib.suppress(RandomizationError):
                domain._reset_internal()
                drawn = True
        samplers[:] = once
        generator = np.random.get_state()


@functools.cache
def table() -> dict[str, Any]:
    """The shipped table as it was written: "seed", "versions", and "scenes" by "SUITE/TASK"."""
    return dict(json.loads(TABLE.read_text(encoding="utf-8")))


def known(suite: str, task: int, episode: int, seed: int) -> Poses | None:
    """The poses of openpi's loop from the table; None for a seed, task or episode that it does not have."""
    rows = table()["scenes"].get(f"{suite}/{task}") if seed == table()["seed"] else None
    if rows is None or not 0 <= episode < table()["resets"]:
        return None
    return {name: unpacked(row, episode) for name, row in rows.items()}


def packed(rows: list[Poses]) -> dict[str, Any]:
    """The poses of a task's episodes, as the table has them: a number that never changes is written once."""
    found: dict[str, Any] = {}
    for name in rows[0]:
        columns = np.array([row[name] for row in rows]).T
        # By its bytes: 0 and -0 are two numbers.
        still = [column[0].item() if len({n.tobytes() for n in column}) == 1 else None for column in columns]
        moving = {str(at): columns[at].tolist() for at in range(POSE) if still[at] is None}
        found[name] = {"still": still, "moving": moving}
    return found


def unpacked(row: Mapping[str, Any], episode: int) -> Array:
    """The pose [7] of one fixture in one episode."""
    return np.array(
        [row["moving"][str(at)][episode] if value is None else value for at, value in enumerate(row["still"])]
    )


def sha256(values: Values) -> str:
    """The digest of where fixtures stand under a protocol: the same for two evaluations of equal scenes.

    It is over the table's numbers, in which no bit may differ, or over the rule where there is no table.
    """
    rule = f"{values.scenes} {values.seed}"
    if (values.scenes, values.seed) != ("serial", table()["seed"]):
        return hashlib.sha256(rule.encode()).hexdigest()
    found = hashlib.sha256()
    for task, rows in sorted(table()["scenes"].items()):
        for name, row in sorted(rows.items()):
            found.update(f"{task} {name} ".encode())
            for episode in range(table()["resets"]):
                found.update(unpacked(row, episode).astype("<f8").tobytes())
    return found.hexdigest()
