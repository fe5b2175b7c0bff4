# Run pi05_libero-001: recipe /shared/my recipes/mine.yaml, sha256 1ee4fbea3f8b53fb; hosts: 2, of 8 GPUs.
# ray job submit -- python ray_job.py     starts it; again, it goes on from the last save
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

COMMAND = [
    '/opt/venv/bin/python',
    '-m',
    'harness.cli',
    'train',
    '--resume',
    '--run=/shared/runs/pi05_libero-001',
    '--device=cuda',
    '--set=train.seed=7',
]
RUN = '/shared/runs/pi05_libero-001'
# The text of the recipe, where it is no shipped one.
RECIPE = "name: mine\n# with a comment\nprompt: 'a: $HOME'\n"
ENVIRONMENT = {}
SCALING = {
    'num_workers': 2,
    'use_gpu': True,
    'resources_per_worker': {'CPU': 32, 'GPU': 8, 'memory': 214748364800},
    'placement_strategy': 'STRICT_SPREAD',
}
RESTARTS = 3
STORAGE = '/shared/launch/pi05_libero-001/ray'


def address():
    """This node's address and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def end_with_parent():
    """Has the kernel end the trainer when Ray ends its worker. 1 is PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def train(config):
    """Runs one process of the run. Every worker calls it."""
    context = get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    coordinator = broadcast_from_rank_zero(address() if rank == 0 else None)
    who = {'JAX_COORDINATOR_ADDRESS': coordinator, 'JAX_NUM_PROCESSES': str(count), 'JAX_PROCESS_ID': str(rank)}
    os.makedirs(RUN, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        command = list(COMMAND)
        if RECIPE is not None:
            file = os.path.join(directory, "recipe.yaml")
            with open(file, "w", encoding="utf-8") as stream:
                stream.write(RECIPE)
            command.append("--recipe=" + file)
        environment = {**os.environ, **ENVIRONMENT, **who}
        subprocess.run(command, env=environment, check=True, preexec_fn=end_with_parent)


if __name__ == "__main__":
    ray.init()
    JaxTrainer(
        train,
        train_loop_config={},
        jax_config=JaxConfig(),
        scaling_config=ScalingConfig(**SCALING),
        run_config=RunConfig(
            # Ray restores a run of its own with the same name; what goes on is kept by the harness.
            name='pi05_libero-001' + time.strftime("-%Y%m%d-%H%M%S"),
            storage_path=STORAGE,
            failure_config=FailureConfig(max_failures=RESTARTS),
        ),
    ).fit()
