"""A script for Ray, which starts one worker on each of several nodes and starts them again when one fails.

Ray's JaxTrainer would join the workers itself and hold the devices, in the process of the worker. The harness
starts its trainer in a process of its own, so the script leaves JAX to that one: JaxConfig() joins nobody.

Source: ray 2.60.0, ray/train/v2/jax/config.py (`_JaxBackend.on_start`), ray/train/collective, and
ray/train/v2/api/config.py. JaxTrainer is alpha there.
"""

from __future__ import annotations

import re
from typing import Any

from harness.errors import HarnessError
from harness.launch.asked import Asked
from harness.launch.command import head, train_words
from harness.run.cluster import COORDINATOR, COUNT, ID

FILE = "ray_job.py"
# What means something to a shell: between double quotes, and without quotes.
_IN_QUOTES, _BARE = re.compile(r"[$`\"\\]"), re.compile(r"[^\w@%+=:,./~-]")

_SCRIPT = '''\
# -*- coding: utf-8 -*-
{head}
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxConfig, JaxTrainer

COMMAND = {command}
RUN = {run}
# The text of the recipe, where it is no shipped one.
RECIPE = {recipe}
ENVIRONMENT = {environment}
SCALING = {scaling}
RESTARTS = {restarts}
STORAGE = {storage}


def address():
    """This node's address and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{{ray.util.get_node_ip_address()}}:{{probe.getsockname()[1]}}"


def end_with_parent():
    """Has the kernel end the trainer when Ray ends its worker. 1 is PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def train(config):
    """Runs one process of the run. Every worker calls it."""
    context = get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    coordinator = broadcast_from_rank_zero(address() if rank == 0 else None)
    who = {{{coordinator!r}: coordinator, {count!r}: str(count), {number!r}: str(rank)}}
    os.makedirs(RUN, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        command = list(COMMAND)
        if RECIPE is not None:
            file = os.path.join(directory, "recipe.yaml")
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(RECIPE)
            command.append("--recipe=" + file)
        environment = {{**os.environ, **ENVIRONMENT, **who}}
        subprocess.run(command, env=environment, check=True, preexec_fn=end_with_parent)


if __name__ == "__main__":
    ray.init()
    JaxTrainer(
        train,
        train_loop_config={{}},
        jax_config=JaxConfig(),
        scaling_config=ScalingConfig(**SCALING),
        run_config=RunConfig(
            # Ray restores a run of its own with the same name; what goes on is kept by the harness.
            name={name} + time.strftime("-%Y%m%d-%H%M%S"),
            storage_path=STORAGE,
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    ).fit()
'''


def ray_script(asked: Asked) -> str:
    """The text of the script. It runs in a Python that has Ray; the harness may be in another one.

    Raises: HarnessError "launch-path" for a directory whose name `ray job submit` does not keep.
    """
    _check_kept(asked.out)
    words = train_words(asked, asked.run, contained=False)
    if asked.recipe_text is not None:
        words.remove(f"--recipe={asked.recipe}")
    resources: dict[str, Any] = {"CPU": asked.cpus or 1}
    if asked.gpus:
        resources["GPU"] = asked.gpus
    if asked.memory_gib is not None:
        resources["memory"] = asked.memory_gib * 2**30
    scaling = {
        "num_workers": asked.hosts,
        "use_gpu": asked.gpus > 0,
        "resources_per_worker": resources,
        # One worker a node.
        "placement_strategy": "STRICT_SPREAD",
    }
    return _SCRIPT.format(
        head="\n".join(
            f"# {line}"
            for line in head(
                asked, f"ray job submit -- python {FILE}     starts it; again, it goes on from the last save"
            )
        ),
        command=_literal(words),
        run=_literal(asked.run),
        recipe=_literal(asked.recipe_text),
        environment=_literal(asked.environment),
        scaling=_literal(scaling),
        restarts=asked.restarts,
        storage=_literal(f"{asked.out}/ray"),
        name=_literal(asked.name),
        coordinator=COORDINATOR,
        count=COUNT,
        number=ID,
    )


def _check_kept(directory: str) -> None:
    """Refuses a name that `ray job submit` hands to its shell as another one.

    Older versions of Ray join the words by subprocess.list2cmdline: they put a word with a space into double
    quotes, and any other into none. Newer ones quote (shlex.join). What is taken here stays itself in both.
    Source: ray-project/ray, python/ray/dashboard/modules/job/cli.py (`submit`) and job_supervisor.py, which
    runs the line with shell=True.
    """
    spaced = re.search(r"\s", directory)
    if (_IN_QUOTES if spaced else _BARE).search(directory):
        raise HarnessError(
            "launch-path",
            "ray job submit does not keep the name of this directory: it goes through a shell",
            got=directory,
            need="a directory whose name means nothing to a shell",
            fix="--out OTHER",
        )


def _literal(value: Any) -> str:
    """`value` as Python writes it, a list or mapping one entry a line."""
    if isinstance(value, list) and value:
        return "[\n" + "".join(f"    {each!r},\n" for each in value) + "]"
    if isinstance(value, dict) and value:
        return "{\n" + "".join(f"    {name!r}: {each!r},\n" for name, each in value.items()) + "}"
    return repr(value)
