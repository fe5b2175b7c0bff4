"""Opens a checkpoint for serving: everything that can be wrong with the question first, then the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple, Protocol

from harness.checkpoint.locate import Located
from harness.data.lerobot import LeRobotDataset
from harness.data.tokenizer import tokenizer_of
from harness.predict.predict import Device, Say
from harness.recipe.sampling import STEPS, check_rows, check_steps
from harness.recipe.schema import Recipe
from harness.serve.batch import Batcher
from harness.serve.contract import digest_of, metadata_of
from harness.serve.desk import Desk
from harness.serve.inputs import Reader
from harness.serve.noise import drawer
from harness.serve.robot import Robot, robot_of
from harness.serve.types import Engine


class Wish(NamedTuple):
    """How a checkpoint is served: Euler steps, rows of a batch, and the prompt of requests without one.

    `base` is the directory of the weights that a step of only trained parameters needs. `rtc`: requests may
    go on from a previous chunk. Without `own_kernels` all attention is in XLA's operations.
    """

    steps: int = STEPS
    batch: int = 1
    default_prompt: str | None = None
    base: str | None = None
    rtc: bool = False
    own_kernels: bool = True


class Opened(NamedTuple):
    """A checkpoint that is ready: its desk, and what serving.json says of it."""

    desk: Desk
    reader: Reader
    robot: Robot
    sha256: str
    deviations: list[str]
    attention: Literal["kernels", "xla"]


class OpenEngine(Protocol):
    """A maker of engines, such as `harness.serve.engine.open_engine`."""

    def __call__(
        self,
        located: Located,
        recipe: Recipe,
        *,
        on: Device,
        steps: int,
        batches: tuple[int, ...],
        say: Say,
        base: str | None = None,
        rtc: bool = False,
        own_kernels: bool = True,
    ) -> Engine: ...


def check_wish(wish: Wish) -> None:
    """Checks the numbers of a wish.

    Raises: HarnessError "sampling-steps-invalid", "batch-invalid".
    """
    check_steps(wish.steps)
    check_rows(wish.batch)


def with_default_prompt(recipe: Recipe, prompt: str | None) -> Recipe:
    """The recipe in which requests without a prompt have this one.

    A prompt that the recipe has for all frames makes way for it, as in openpi's server.
    """
    if prompt is None:
        return recipe
    data = recipe.data.model_copy(update={"prompt": None, "default_prompt": prompt})
    return recipe.model_copy(update={"data": data})


def open_served(
    located: Located,
    recipe: Recipe,
    wish: Wish,
    on: Device,
    say: Say,
    open_engine: OpenEngine,
    *,
    data: LeRobotDataset | None = None,
    others: Callable[[], int] = lambda: 1,
) -> Opened:
    """The checkpoint with every shape compiled and run once. Of a mixture: for its first dataset's robot.

    `data` is the recipe's dataset, if it was named. `others()` is the number of connected clients.
    Raises: HarnessError of `check_wish`, `robot_of`, the tokenizer and the engine.
    """
    check_wish(wish)
    one = with_default_prompt(recipe.parts()[0], wish.default_prompt)
    robot = robot_of(located, one, data)
    tokenizer = tokenizer_of(one)
    with ThreadPoolExecutor(1) as pool:
        # Reading 7 to 13 GB for their hash takes about as long as compiling does.
        digest = pool.submit(digest_of, located, wish.base)
        # One compiled size: a request then meets the same program whoever else is served.
        engine = open_engine(
            located,
            recipe,
            on=on,
            steps=wish.steps,
            batches=(wish.batch,),
            say=say,
            base=wish.base,
            rtc=wish.rtc,
            own_kernels=wish.own_kernels,
        )
        engine.warm(say)
        sha256 = digest.result()
    reader = Reader(one, robot.stats, robot.state, engine.buckets, tokenizer, engine.rtc)
    reader.warm()
    metadata = metadata_of(located, reader, robot, engine, digest=sha256, steps=wish.steps)
    draw = drawer(engine.horizon, engine.action_dim)
    # Compiled now, so that the first request does not wait for it.
    draw(0)
    desk = Desk(reader, Batcher(engine, draw, others), metadata)
    return Opened(desk, reader, robot, sha256, engine.deviations, engine.attention)
