"""A scripted pick-and-place policy that reads poses from the simulator: a control, and a maker of episodes.

It takes one thing from above and puts it on or in another. It sees no picture. Its noise is a function of
(task, episode, seed) alone, so an episode is the same each time.

Units: metres, radians, steps. An action [7] is in [-1, 1]: 0.05 m and 0.5 rad a step at 1, and the gripper's
sign. Source of the conventions: robosuite 1.4.1 controllers/osc.py and models/grippers/panda_gripper.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from harness.errors import HarnessError
from harness.simulate.environment import Environment
from harness.simulate.frames import Array
from harness.simulate.scenes import Poses

OPEN, CLOSE = -1.0, 1.0
_METRES, _RADIANS = 0.05, 0.5
# The hand follows its goal late: a larger step is asked for than what is left.
_GAIN = 2.0
# Steps in which the fingers close at least and at most, and in which they let a thing go. They have closed
# around something when they move by less than `_STILL` a step.
_CLOSING, _OPENING, _STILL = (6, 16), 6, 1e-3
# Nearer than this the gripper is where it should be.
_THERE = 0.008
# Further than this from where it was taken, the thing is no more in the hand.
_LOST = 0.08
# Nearer than this to where it takes or leaves a thing the hand is slow, and then it stays for some steps. So
# who learns from it may close or open the fingers a little early or late.
_NEAR, _SLOW, _SETTLING = 0.06, 0.4, 3
_TAKING = ("reach", "settle", "close")
# A place of the hand, the gripper's action, and the largest action on the way there.
Goal = tuple[Array, float, float]
# Steps without progress after which the gripper is taken to be as near as it comes.
_PATIENCE = 12
# Steps after which the way no longer leads off the goal.
_ASTRAY = 20


class Scene(Protocol):
    """What the policy reads of a simulator: where a thing or a place is now, [3] by name."""

    def position(self, name: str) -> Array: ...


class Job(NamedTuple):
    """What is taken, and where it goes.

    `grasp` is the gripper's place beside the thing's own position. `drop` is the thing's beside the target's
    when it is let go. It is carried `clearance` above where it was and where it goes. Further aside than
    `funnel` from where it goes down, the gripper stays high: a wide thing leaves the fingers little room.
    """

    thing: str
    target: str
    grasp: tuple[float, float, float]
    drop: tuple[float, float, float]
    clearance: float
    funnel: float = 0.06


class Noise(NamedTuple):
    """Of an episode: of each action (its standard deviation), and how far the way begins off the first place.

    `stray` are metres, the standard deviation of a first goal that is left before anything is touched.
    """

    action: float
    stray: float
    yaw: float


# Of the control: enough that no two episodes are the same.
QUIET = Noise(action=0.015, stray=0.01, yaw=0.05)
# Of recordings to train on: the model sees the gripper off its way, and the way back.
WIDE = Noise(action=0.08, stray=0.03, yaw=0.1)


def generator(task: str, episode: int, seed: int) -> np.random.Generator:
    """The random numbers of an episode."""
    text = f"{task}/{episode}/{seed}".encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))


def job_of(suite: str, language: str, interest: tuple[str, ...], scene: Scene) -> Job | None:
    """What the task `language` asks, in terms of one thing and one target; None if it asks for more.

    `interest` are the task's own objects of interest, the thing first.
    """
    if suite == "libero_object":
        thing, target = interest[0], "basket_1"
        height = float(scene.position(thing)[2])
        # A thing stands on the floor, at height 0: a tall one is taken 35 mm below its top. At a flat one's
        # middle the fingers would touch the floor.
        above = max(0.008, height - 0.035)
        return Job(thing, target, (0.0, 0.0, above), (0.0, 0.0, 0.16), 0.19, funnel=0.02)
    if language == "put the cream cheese in the bowl":
        return Job("cream_cheese_1", "akita_black_bowl_1", (0.0, 0.0, 0.004), (0.0, 0.0, 0.09), 0.16)
    level = ("plate_1", "flat_stove_1_cook_region", "wooden_cabinet_1_top_side")
    if interest[0] != "akita_black_bowl_1" or interest[-1] not in level or "drawer" in language:
        return None
    # A bowl is taken at its rim, one finger inside.
    return Job(interest[0], interest[-1], (0.0, 0.045, 0.028), (0.0, 0.0, 0.02), 0.14)


class Scripted:
    """The policy of one episode."""

    def __init__(self, job: Job, scene: Scene, random: np.random.Generator, noise: Noise) -> None:
        self._job, self._random, self._noise = job, random, noise
        self._start = scene.position(job.thing).copy()
        self._yaw = noise.yaw * random.uniform(-1, 1)
        self._stray = noise.stray * random.normal(size=3)
        self._fingers, self._still = np.zeros(2), False
        self.phase, self._steps, self._best, self._stale = "reach", 0, math.inf, 0
        self._release = np.zeros(3)

    def act(self, observation: Mapping[str, Array], scene: Scene) -> Array:
        """The action [7] float64 at robosuite's observation, whose picture is not looked at."""
        hand, fingers = observation["robot0_eef_pos"], observation["robot0_gripper_qpos"]
        self._still = float(np.abs(fingers - self._fingers).max()) < _STILL
        self._fingers = fingers.copy()
        goal, grip, speed = self._goal(hand, scene)
        move = np.clip(_GAIN * (goal - hand) / _METRES, -1, 1)
        most = float(np.abs(move).max())
        if most > speed:
            move = move * speed / most
        if self.phase not in ("settle", "close", "hover", "open"):
            move = move + self._noise.action * self._random.normal(size=3)
        turn = _turn(self._yaw, observation["robot0_eef_quat"])
        return np.clip(np.concatenate([move, turn, [grip]]), -1, 1)

    def _goal(self, hand: Array, scene: Scene) -> Goal:
        """Where the gripper should be, what the fingers should do, and the largest action on the way."""
        self._steps += 1
        taking = self._taking(hand) if self.phase in _TAKING else None
        return taking if taking is not None else self._giving(hand, scene)

    def _taking(self, hand: Array) -> Goal | None:
        """The goal until the thing is in the hand; then None."""
        goal = self._start + self._job.grasp
        if self.phase == "reach":
            if not self._there(goal, hand):
                return self._over(goal, hand, 0.10), OPEN, _speed(goal, hand, 0.9)
            self._begin("settle")
        if self.phase == "settle":
            if self._steps <= _SETTLING:
                return goal, OPEN, _SLOW
            self._begin("close")
        least, most = _CLOSING
        if self._steps <= least or (self._steps <= most and not self._still):
            return goal, CLOSE, 0.3
        self._begin("carry")
        return None

    def _giving(self, hand: Array, scene: Scene) -> Goal:
        """The goal from there on. A thing that has fallen is taken again."""
        if self.phase == "carry":
            thing, target = scene.position(self._job.thing), scene.position(self._job.target)
            hold = hand - thing
            if float(np.linalg.norm(hold - self._job.grasp)) > _LOST:
                self._start = thing
                self._begin("reach")
                return hand, OPEN, _SLOW
            goal = target + self._job.drop + hold
            if not self._there(goal, hand):
                height = max(self._start[2], target[2]) + self._job.clearance + max(hold[2], 0.0)
                return self._carried(goal, hand, height), CLOSE, _speed(goal, hand, 0.85)
            self._release = goal
            self._begin("hover")
        if self.phase == "hover":
            if self._steps <= _SETTLING:
                return self._release, CLOSE, 0.2
            self._begin("open")
        if self.phase == "open":
            if self._steps <= _OPENING:
                return self._release, OPEN, 0.2
            self._begin("leave")
        return self._release + np.array([0.0, 0.0, 0.12]), OPEN, 0.7

    def _begin(self, phase: str) -> None:
        self.phase, self._steps, self._best, self._stale = phase, 1, math.inf, 0

    def _there(self, goal: Array, hand: Array) -> bool:
        """Whether the gripper is at the goal, or comes no nearer to it while it is close."""
        distance = float(np.linalg.norm(goal - hand))
        self._stale = 0 if distance < self._best - 1e-3 else self._stale + 1
        self._best = min(self._best, distance)
        return distance < _THERE or (self._stale >= _PATIENCE and distance < 4 * _THERE)

    def _over(self, goal: Array, hand: Array, clear: float) -> Array:
        """The next goal on a way that ends straight down: high while the gripper is to the side."""
        side = float(np.linalg.norm((goal - hand)[:2]))
        share = min(1.0, max(0.0, side - _THERE / 2) / self._job.funnel)
        astray = max(0.0, 1 - self._steps / _ASTRAY)
        return goal + [0.0, 0.0, clear * share] + self._stray * min(share, astray)

    def _carried(self, goal: Array, hand: Array, height: float) -> Array:
        """The next goal of a thing in the hand: up first, then to the side, then down."""
        side = float(np.linalg.norm((goal - hand)[:2]))
        share = min(1.0, max(0.0, side - _THERE) / 0.06)
        low = goal[2] + (height - goal[2]) * share
        # Sideways no faster than it has risen.
        risen = min(1.0, max(0.0, 1 - (low - hand[2]) / 0.08)) if share == 1.0 else 1.0
        return np.array([*(hand[:2] + risen * (goal[:2] - hand[:2])), max(low, goal[2])])


class OfEnvironment:
    """Where things are in an environment, by the name of a body or of a site."""

    def __init__(self, env: Environment) -> None:
        self._domain = env.env.env

    def position(self, name: str) -> Array:
        data, bodies = self._domain.sim.data, self._domain.obj_body_id
        return np.array(data.body_xpos[bodies[name]] if name in bodies else data.get_site_xpos(name))


def scripted(env: Environment, random: np.random.Generator, noise: Noise = QUIET) -> Scripted:
    """The policy of an episode whose scene has settled.

    Raises: HarnessError "scripted-has-no-way" for a task that is not one thing put on or in another.
    """
    scene = OfEnvironment(env)
    job = job_of(env.suite, env.prompt, tuple(env.env.obj_of_interest), scene)
    if job is None:
        raise HarnessError(
            "scripted-has-no-way",
            "the scripted policy has no way to do this task",
            got=f"{env.suite} task {env.task}, {env.prompt}",
            need="one thing that is taken from above and put on or in another, outside of a drawer",
            fix="leave this task out, for example --suites libero_object",
        )
    return Scripted(job, scene, random, noise)


class Script:
    """The scripted policy as a control of an evaluation. It is asked nothing, and answers nothing."""

    fixtures: Poses | None = None

    def __init__(self, task: str, episode: int, seed: int) -> None:
        self._random = generator(task, episode, seed)
        self._policy: Scripted | None = None

    def chunk(self, actions: Array | None) -> None:
        pass

    def act(self, env: Environment, observation: Any) -> Array:
        if self._policy is None:
            self._policy = scripted(env, self._random)
        return self._policy.act(observation, OfEnvironment(env))


def _speed(goal: Array, hand: Array, fast: float) -> float:
    return _SLOW if float(np.linalg.norm(goal - hand)) < _NEAR else fast


def _turn(yaw: float, quaternion: Array) -> Array:
    """The rotation part [3] of the action that points the gripper down, at `yaw`. Quaternion: x, y, z, w."""
    c, s = math.cos(yaw), math.sin(yaw)
    wanted = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ np.diag([1.0, -1.0, -1.0])
    turn = np.clip(_axis_angle(wanted @ _matrix(quaternion).T) / _RADIANS, -0.25, 0.25)
    return np.where(np.abs(turn) < 5e-3, 0.0, turn)


def _matrix(quaternion: Array) -> Array:
    x, y, z, w = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _axis_angle(rotation: Array) -> Array:
    """The axis times the angle, [3]; of half a turn the axis is not defined, and 0 is given."""
    angle = math.acos(min(1.0, max(-1.0, (float(np.trace(rotation)) - 1) / 2)))
    if angle < 1e-6 or math.pi - angle < 1e-6:
        return np.zeros(3)
    axis = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    return axis / (2 * math.sin(angle)) * angle
