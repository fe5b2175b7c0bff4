"""Tests which process of how many this is, by the variables of each launcher. JAX is not needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.errors import HarnessError
from harness.run.cluster import Member, first_host, member_of

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "n1:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NTASKS": "2",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
EIGHT_A_NODE = SLURM | {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "13",
    "SLURM_LOCALID": "5",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
TORCHRUN = {
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        (EXPLICIT, Member("n1:1234", 2, 1, None, "explicit variables")),
        (
            EXPLICIT | {"JAX_LOCAL_DEVICE_IDS": "2,3"},
            Member("n1:1234", 2, 1, (2, 3), "explicit variables"),
        ),
        # An Indexed Job numbers its pods; the rest of it is in the pod's own variables.
        (
            {k: v for k, v in EXPLICIT.items() if k != "JAX_PROCESS_ID"} | {"JOB_COMPLETION_INDEX": "1"},
            Member("n1:1234", 2, 1, None, "explicit variables"),
        ),
        (EXPLICIT | {"JOB_COMPLETION_INDEX": "1"}, Member("n1:1234", 2, 1, None, "explicit variables")),
        # One task a node takes all of the node's devices.
        (
            SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"},
            Member("gpu03:61517", 2, 1, None, "Slurm"),
        ),
        (EIGHT_A_NODE, Member("gpu03:61517", 16, 13, (5,), "Slurm")),
        (
            EIGHT_A_NODE | {"SLURM_STEP_TASKS_PER_NODE": "2(x8)", "SLURM_LOCALID": "1", "SLURM_NODEID": "6"},
            Member("gpu03:61517", 16, 13, (4, 5, 6, 7), "Slurm"),
        ),
        # srun --gpus-per-task shows each task its own card alone.
        (
            EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": "5"},
            Member("gpu03:61517", 16, 13, None, "Slurm"),
        ),
        (
            EIGHT_A_NODE
            | {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "2"}
            | {"CUDA_VISIBLE_DEVICES": "2,3"},
            Member("gpu03:61517", 16, 13, None, "Slurm"),
        ),
        # Two tasks of four cards each: half of them is not another task's.
        (
            EIGHT_A_NODE
            | {"SLURM_STEP_TASKS_PER_NODE": "2(x8)", "SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "a100:4"}
            | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            Member("gpu03:61517", 16, 13, None, "Slurm"),
        ),
        # Without binding all tasks see all cards.
        (
            EIGHT_A_NODE
            | {"SLURM_STEP_TASKS_PER_NODE": "4(x4)", "SLURM_LOCALID": "1", "SLURM_GPUS_PER_TASK": "2"},
            Member("gpu03:61517", 16, 13, (2, 3), "Slurm"),
        ),
        (SLURM | {"SLURM_STEP_ID": "3"}, Member("gpu03:61520", 2, 1, None, "Slurm")),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "ib3:9"}, Member("ib3:9", 2, 1, None, "Slurm")),
        (TORCHRUN, Member("10.0.0.1:29500", 2, 1, None, "torchrun")),
        # torchrun's own agent holds MASTER_PORT.
        (
            TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True"},
            Member("10.0.0.1:29501", 2, 1, None, "torchrun"),
        ),
        (OPEN_MPI, Member("10.96.0.1:62624", 2, 1, None, "Open MPI")),
        (
            OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[fe80::b9b,2620::2]:4337"},
            Member("[fe80::b9b]:62880", 2, 1, None, "Open MPI"),
        ),
        # Slurm starts one torchrun a node, and torchrun eight processes.
        (
            SLURM
            | TORCHRUN
            | {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
            | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"},
            Member("10.0.0.1:29500", 16, 9, (1,), "torchrun"),
        ),
        # What Slurm showed to torchrun's task, torchrun's processes share.
        (
            SLURM
            | TORCHRUN
            | {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"}
            | {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_GPUS_PER_TASK": "8"},
            Member("10.0.0.1:29500", 16, 9, (1,), "torchrun"),
        ),
        # Its ranks follow who came first, not Slurm's numbers.
        (SLURM | TORCHRUN | {"RANK": "0"}, Member("10.0.0.1:29500", 2, 0, None, "torchrun")),
        (SLURM | EXPLICIT, Member("n1:1234", 2, 1, None, "explicit variables")),
        # On a CPU every process makes devices of its own.
        (
            EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"},
            Member("gpu03:61517", 16, 13, None, "Slurm"),
        ),
    ],
)
def test_each_launcher_says_which_process_this_is(environment: dict[str, str], want: Member) -> None:
    assert member_of(environment) == want


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1"},
        # A batch script before srun, and a step of one task.
        {k: v for k, v in SLURM.items() if not k.startswith("SLURM_STEP")},
        SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"},
        # Names that others use too.
        {"RANK": "3"},
        {"WORLD_SIZE": "8"},
        {"MASTER_ADDR": "here", "MASTER_PORT": "1"},
        # Pods of a sweep, each with a run of its own.
        {"JOB_COMPLETION_INDEX": "4"},
        {"JAX_NUM_PROCESSES": "1"},
        # Four tasks of a sweep.
        SLURM | {"JAX_NUM_PROCESSES": "1"},
    ],
)
def test_without_peers_a_process_trains_alone(environment: dict[str, str]) -> None:
    assert member_of(environment) is None


@pytest.mark.parametrize(
    ("environment", "code", "says"),
    [
        *(
            ({k: v for k, v in EXPLICIT.items() if k != left_out}, "cluster-half-set", left_out)
            for left_out in EXPLICIT
        ),
        ({"JAX_COORDINATOR_ADDRESS": "n1:1"}, "cluster-half-set", "JAX_NUM_PROCESSES, JAX_PROCESS_ID"),
        *(
            ({k: v for k, v in TORCHRUN.items() if k != left_out}, "cluster-half-set", left_out)
            for left_out in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
        ),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "cluster-half-set", "OMPI_COMM_WORLD_SIZE"),
        (EXPLICIT | {"JAX_PROCESS_ID": "2"}, "cluster-contradiction", "JAX_PROCESS_ID=2"),
        (EXPLICIT | {"JAX_PROCESS_ID": "-1"}, "cluster-value", "JAX_PROCESS_ID"),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "0"}, "cluster-value", "JAX_NUM_PROCESSES"),
        (EXPLICIT | {"JAX_NUM_PROCESSES": "two"}, "cluster-value", "two"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "n1"}, "cluster-coordinator", "n1"),
        (EXPLICIT | {"JAX_COORDINATOR_ADDRESS": "n1:70000"}, "cluster-coordinator", "70000"),
        (EXPLICIT | {"JOB_COMPLETION_INDEX": "0"}, "cluster-contradiction", "JOB_COMPLETION_INDEX=0"),
        # Written before srun: every process has the batch script's number.
        (SLURM | EXPLICIT | {"JAX_PROCESS_ID": "0"}, "cluster-contradiction", "Slurm: 1 of 2"),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "4"} | EXPLICIT, "cluster-contradiction", "1 of 4"),
        (SLURM | TORCHRUN | {"WORLD_SIZE": "3"}, "cluster-contradiction", "torchrun: 1 of 3"),
        ({k: v for k, v in OPEN_MPI.items() if "orte" not in k}, "cluster-coordinator", "is not set"),
        (EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": ""}, "cluster-devices", "8 processes share"),
        (EIGHT_A_NODE | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "cluster-devices", "0,1,2"),
        (SLURM | {"SLURM_STEP_NODELIST": ",n2"}, "cluster-value", "SLURM_STEP_NODELIST"),
    ],
)
def test_half_set_and_contradictory_variables_are_refused(
    environment: dict[str, str], code: str, says: str
) -> None:
    with pytest.raises(HarnessError) as caught:
        member_of(environment)
    assert caught.value.code == code
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "want"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("node[001-015],x", "node001"),
        ("node[001,007-015]", "node001"),
        ("rack[2-3]-gpu", "rack2-gpu"),
        ("a-b.cluster,c", "a-b.cluster"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, want: str) -> None:
    assert first_host(nodes) == want


def test_nothing_of_the_detection_loads_jax() -> None:
    code = "import sys, harness.run.cluster, harness.run.peers; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
