"""The scripted policy without a simulator: a point that moves as it is told, and a thing that it can take."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.simulate.scripted import (
    QUIET,
    WIDE,
    Job,
    Noise,
    Scripted,
    generator,
    job_of,
)

BOWL, PLATE = "akita_black_bowl_1", "plate_1"
STILL = Noise(0.0, 0.0, 0.0)


class World:
    """A hand that goes a third of the way it is told, fingers that close in some steps, and two things."""

    def __init__(
        self, thing: tuple[float, ...] = (-0.05, 0.2, 0.9), target: tuple[float, ...] = (0.06, 0.2, 0.9)
    ):
        self.at = {BOWL: np.array(thing), PLATE: np.array(target)}
        self.hand, self.open = np.array([-0.2, 0.0, 1.17]), 0.04
        self.quaternion = np.array([1.0, 0.0, 0.0, 0.0])
        self.highest = 0.0

    def position(self, name: str) -> np.ndarray:
        return self.at[name].copy()

    def observation(self) -> dict[str, np.ndarray]:
        return {
            "robot0_eef_pos": self.hand.copy(),
            "robot0_eef_quat": self.quaternion.copy(),
            "robot0_gripper_qpos": np.array([self.open, -self.open]),
        }

    def step(self, action: np.ndarray, grasp: tuple[float, float, float]) -> None:
        move = 0.05 * 0.35 * action[:3]
        held = self.open < 0.01 and np.linalg.norm(self.hand - self.at[BOWL] - grasp) < 0.02
        self.hand = self.hand + move
        self.open = float(np.clip(self.open - 0.004 * action[6], 0.002, 0.04))
        if held:
            self.at[BOWL] = self.at[BOWL] + move
        elif self.at[BOWL][2] > 0.9:
            self.at[BOWL] = np.array([*self.at[BOWL][:2], max(0.9, self.at[BOWL][2] - 0.03)])
        self.highest = max(self.highest, float(self.at[BOWL][2]))


JOB = Job(BOWL, PLATE, (0.0, 0.045, 0.035), (0.0, 0.0, 0.02), 0.14)


def driven(
    noise: Noise, episode: int = 3, seed: int = 7, job: Job = JOB
) -> tuple[World, np.ndarray, list[str]]:
    """The world after 200 steps, the actions [200, 7], and the phases in their order."""
    world = World()
    policy = Scripted(job, world, generator("libero_spatial/0", episode, seed), noise)
    actions, phases = [], []
    for _ in range(200):
        actions.append(policy.act(world.observation(), world))
        phases.append(policy.phase)
        world.step(actions[-1], job.grasp)
    return world, np.array(actions), list(dict.fromkeys(phases))


@pytest.mark.parametrize("noise", [STILL, QUIET, WIDE])
def test_the_thing_is_lifted_carried_and_let_go_over_its_target(noise: Noise) -> None:
    world, actions, phases = driven(noise)
    assert phases == ["reach", "settle", "close", "carry", "hover", "open", "leave"]
    assert world.highest > 0.9 + 0.1
    assert np.linalg.norm((world.at[BOWL] - world.at[PLATE])[:2]) < 0.02
    assert world.at[BOWL][2] == pytest.approx(0.9)
    assert np.abs(actions).max() <= 1


def test_the_gripper_closes_for_the_carrying_only() -> None:
    _, actions, _ = driven(STILL)
    signs = actions[:, 6]
    assert set(signs) == {-1.0, 1.0}
    # Open, closed, open: it changes twice.
    assert np.count_nonzero(np.diff(signs)) == 2
    assert signs[0] == signs[-1] == -1


def test_an_episode_is_a_function_of_its_task_number_and_seed() -> None:
    one, again, other, reseeded = (driven(WIDE, *each)[1] for each in ((3, 7), (3, 7), (4, 7), (3, 8)))
    assert one.tobytes() == again.tobytes()
    assert one.tobytes() != other.tobytes()
    assert one.tobytes() != reseeded.tobytes()
    draws = [generator(task, 3, 7).normal() for task in ("libero_spatial/0", "libero_spatial/1")]
    assert draws[0] != draws[1]


def test_the_global_generator_of_numpy_is_not_touched() -> None:
    np.random.seed(1)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    driven(WIDE)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("angle", [-0.2, 0.2])
def test_a_tilted_gripper_is_turned_back(axis: int, angle: float) -> None:
    """The turn [rad] that brings it to point down is the opposite of the tilt, about the same axis."""
    world = World()
    tilt = np.zeros(4)
    tilt[axis], tilt[3] = math.sin(angle / 2), math.cos(angle / 2)
    down = np.array([1.0, 0.0, 0.0, 0.0])
    world.quaternion = _product(tilt, down)
    policy = Scripted(JOB, world, generator("t", 0, 0), STILL)
    turn = policy.act(world.observation(), world)[3:6]
    # Half a turn is the controller's 1, and no more than a quarter of it is asked for.
    wanted = np.zeros(3)
    wanted[axis] = np.clip(-angle / 0.5, -0.25, 0.25)
    np.testing.assert_allclose(turn, wanted, atol=1e-9)


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two quaternions x, y, z, w."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.array([*vector, a[3] * b[3] - a[:3] @ b[:3]])


def test_a_hand_that_is_held_up_near_its_goal_takes_what_it_can_reach() -> None:
    world = World()
    policy = Scripted(JOB, world, generator("t", 0, 0), STILL)
    for _ in range(120):
        action = policy.act(world.observation(), world)
        if policy.phase == "close":
            break
        world.step(action, JOB.grasp)
        # Something is in the way 2 cm above the goal.
        world.hand[2] = max(world.hand[2], 0.9 + JOB.grasp[2] + 0.02)
    assert policy.phase == "close"


def test_a_hand_that_is_held_up_far_from_its_goal_never_closes() -> None:
    world = World()
    policy = Scripted(JOB, world, generator("t", 0, 0), STILL)
    for _ in range(200):
        policy.act(world.observation(), world)
    assert policy.phase == "reach"


def test_a_thing_that_falls_is_taken_again() -> None:
    world = World()
    policy = Scripted(JOB, world, generator("t", 0, 0), STILL)
    fell = False
    for _ in range(250):
        world.step(policy.act(world.observation(), world), JOB.grasp)
        if policy.phase == "carry" and world.at[BOWL][2] > 0.98 and not fell:
            world.at[BOWL] = np.array([-0.08, 0.15, 0.9])
            fell = True
    assert fell
    assert policy.phase == "leave"
    assert np.linalg.norm((world.at[BOWL] - world.at[PLATE])[:2]) < 0.02


@pytest.mark.parametrize(
    ("suite", "language", "interest", "thing"),
    [
        (
            "libero_spatial",
            "pick up the black bowl on the stove and place it on the plate",
            (BOWL, PLATE),
            BOWL,
        ),
        ("libero_goal", "put the bowl on the stove", (BOWL, "flat_stove_1_cook_region"), BOWL),
        ("libero_goal", "put the cream cheese in the bowl", ("cream_cheese_1", BOWL), "cream_cheese_1"),
        ("libero_object", "pick up the milk and place it in the basket", ("milk_1", "basket_1"), "milk_1"),
        ("libero_goal", "turn on the stove", ("flat_stove_1",), None),
        (
            "libero_goal",
            "open the top drawer and put the bowl inside",
            (BOWL, "wooden_cabinet_1_top_region"),
            None,
        ),
        ("libero_10", "put both moka pots on the stove", ("moka_pot_1", "moka_pot_2"), None),
    ],
)
def test_a_task_has_a_way_if_it_is_one_thing_put_somewhere(
    suite: str, language: str, interest: tuple[str, ...], thing: str | None
) -> None:
    class Anywhere:
        def position(self, name: str) -> np.ndarray:  # noqa: ARG002
            return np.array([0.0, 0.0, 0.07])

    found = job_of(suite, language, interest, Anywhere())
    assert (None if found is None else found.thing) == thing


def test_a_tall_thing_is_taken_below_its_top_and_a_flat_one_above_the_floor() -> None:
    class Standing:
        height = 0.07

        def position(self, name: str) -> np.ndarray:  # noqa: ARG002
            return np.array([0.0, 0.0, self.height])

    scene = Standing()
    tall = job_of("libero_object", "", ("milk_1", "basket_1"), scene)
    scene.height = 0.01
    flat = job_of("libero_object", "", ("butter_1", "basket_1"), scene)
    assert tall is not None
    assert flat is not None
    assert tall.grasp == pytest.approx((0.0, 0.0, 0.035))
    assert flat.grasp == (0.0, 0.0, 0.008)
