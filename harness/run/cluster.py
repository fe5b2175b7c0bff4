"""Which process of how many this is, read from the variables of whoever started it.

Five launchers are known, by the variables that they set. They are read from the innermost one outwards: a
launcher that was started by another one (torchrun by Slurm) decides.

- explicit: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, as Kubeflow Trainer and people set
  them. JAX itself reads only the first. In a Kubernetes Indexed Job, JOB_COMPLETION_INDEX stands for
  the last: the API that would say the others needs an account that may read pods.
- torchrun: MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK.
- Open MPI: OMPI_COMM_WORLD_SIZE and OMPI_COMM_WORLD_RANK; Open MPI 4 names its host in OMPI_MCA_orte_hnp_uri.
- Slurm: the variables of a step that srun started. A batch script alone is one process.

JAX's own detection would give each process of Slurm and of Open MPI one device, so that a node with eight
uses one. Here a process has all devices of its node, unless several processes share it.

Sources: jax 0.10.2 jax/_src/clusters; Slurm's srun(1), OUTPUT ENVIRONMENT VARIABLES; PyTorch's torchrun page,
"Environment Variables"; Kubernetes' "Jobs", Indexed; Kubeflow Trainer pkg/runtime/framework/plugins/jax.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from harness.errors import HarnessError

Environment = Mapping[str, str]

COORDINATOR, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LOCAL_DEVICES = "JAX_LOCAL_DEVICE_IDS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
POD = "JOB_COMPLETION_INDEX"
_TORCH = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
# Set by torchrun's agent when it listens on MASTER_PORT itself.
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"
_OMPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_ORTE = "OMPI_MCA_orte_hnp_uri"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
# Set by --gpus-per-task, as "2" or "a100:2". Slurm then shows each task its own cards, and no other's
# (srun(1), "--gpus-per-task ... implies --gpu-bind=per_task"). Launchers that a task starts share them.
_PER_TASK, _OWN_SHARES = "SLURM_GPUS_PER_TASK", ("torchrun", "Open MPI")
# The ports above those that Linux gives to outgoing connections by default (32768 to 60999), as JAX takes.
_FIRST_PORT, _PORTS = 61440, 4096


class Member(NamedTuple):
    """This process among those that train one run.

    `local_devices` are the numbers of its own devices among the visible ones; None for all of them. `by` is
    the launcher, in words.
    """

    coordinator: str
    processes: int
    number: int
    local_devices: tuple[int, ...] | None
    by: str


class _Seat(NamedTuple):
    """What a launcher says. `local` is (number on this node, processes on this node)."""

    by: str
    processes: int
    number: int
    local: tuple[int, int]
    coordinator: Callable[[], str]


def member_of(environment: Environment) -> Member | None:
    """The place of this process, or None if it trains alone. Nothing but `environment` is read.

    Raises: HarnessError "cluster-half-set", "cluster-value", "cluster-contradiction",
    "cluster-coordinator" or "cluster-devices".
    """
    seats = [seat for seat in (read(environment) for read in _LAUNCHERS) if seat is not None]
    # A launcher of one process, or JAX_NUM_PROCESSES=1, says that each trains for itself.
    if not seats or seats[0].processes == 1:
        return None
    for outer in seats[1:]:
        _check_inside(seats[0], outer)
    seat = seats[0]
    address = environment.get(COORDINATOR) or seat.coordinator()
    return Member(
        _address(address, seat.by), seat.processes, seat.number, _devices(environment, seat), seat.by
    )


def _explicit(environment: Environment) -> _Seat | None:
    names = [name for name in (COUNT, ID) if environment.get(name)]
    alone = COORDINATOR in environment and not any(
        _has(environment, names) for names in (_TORCH[2:], _OMPI, _SLURM)
    )
    if not names and not (alone and environment[COORDINATOR]):
        return None
    values = {name: environment.get(name, "") for name in (COORDINATOR, COUNT, ID)}
    pod = environment.get(POD)
    if pod and values[ID] and pod != values[ID]:
        raise HarnessError(
            "cluster-contradiction",
            f"{ID} and {POD}, the pod's number, disagree",
            got=f"{ID}={values[ID]}, {POD}={pod}",
            need="the same number",
            fix=f"unset {ID}: the Indexed Job numbers its pods",
        )
    values[ID] = values[ID] or pod or ""
    if values[COUNT] == "1":
        return _Seat("explicit variables", 1, 0, (0, 1), str)
    _whole_set("the explicit variables", values)
    local = environment.get("LOCAL_RANK"), environment.get("LOCAL_WORLD_SIZE")
    return _seat(
        "explicit variables",
        values[COUNT],
        values[ID],
        local if all(local) else _slurm_local(environment),
        lambda: values[COORDINATOR],
        (COUNT, ID),
    )


def _torchrun(environment: Environment) -> _Seat | None:
    here = [name for name in _TORCH if environment.get(name)]
    # RANK or WORLD_SIZE alone, or an address alone, are names that others use too.
    if not ({"RANK", "WORLD_SIZE"} <= set(here) or (len(here) == 3)):
        return None
    values = {name: environment.get(name, "") for name in _TORCH}
    if values["WORLD_SIZE"] != "1":
        _whole_set("torchrun's variables", values)

    def coordinator() -> str:
        port = _number("MASTER_PORT", values["MASTER_PORT"])
        return f"{values['MASTER_ADDR']}:{port + (environment.get(_AGENT) == 'True')}"

    local = environment.get("LOCAL_RANK"), environment.get("LOCAL_WORLD_SIZE")
    return _seat(
        "torchrun", values["WORLD_SIZE"], values["RANK"] or "0", local, coordinator, ("WORLD_SIZE", "RANK")
    )


def _open_mpi(environment: Environment) -> _Seat | None:
    if not any(environment.get(name) for name in _OMPI):
        return None
    values = {name: environment.get(name, "") for name in _OMPI}
    _whole_set("Open MPI's variables", values)

    def coordinator() -> str:
        uri = environment.get(_ORTE, "")
        found = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
        if found is None:
            raise _no_coordinator(uri)
        job = uri.partition(".")[0]
        # ORTE's job numbers are multiples of 4096.
        port = _FIRST_PORT + (int(job) // _PORTS if job.isdigit() else 0) % _PORTS
        host = found[1] or f"[{found[2]}]"
        return f"{host}:{port}"

    local = environment.get("OMPI_COMM_WORLD_LOCAL_RANK"), environment.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    return _seat("Open MPI", values[_OMPI[0]], values[_OMPI[1]], local, coordinator, _OMPI)


def _slurm(environment: Environment) -> _Seat | None:
    if not all(environment.get(name) for name in _SLURM):
        return None
    job, nodes, count, number = (environment[name] for name in _SLURM)

    def coordinator() -> str:
        step = environment.get("SLURM_STEP_ID", "0")
        offset = _number("SLURM_JOB_ID", job) + (int(step) if step.isdigit() else 0)
        return f"{first_host(nodes)}:{_FIRST_PORT + offset % _PORTS}"

    return _seat(
        "Slurm", count, number, _slurm_local(environment), coordinator, ("SLURM_STEP_NUM_TASKS", _SLURM[3])
    )


_LAUNCHERS = (_explicit, _torchrun, _open_mpi, _slurm)


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list: "gpu[03-05,9],x" → "gpu03".

    Raises: HarnessError "cluster-value".
    """
    name = re.match(r"\A([^,\[\]]*)(?:\[(\d+)(?:[^\d\]][^\]]*)?\]([^,\[\]]*))?", nodes.strip())
    first = "".join(part or "" for part in name.groups()) if name else ""
    if not first:
        raise _bad_value("SLURM_STEP_NODELIST", nodes, "a list of nodes, such as gpu[03-05]")
    return first


def _slurm_local(environment: Environment) -> tuple[str | None, str | None]:
    """(number on this node, processes on this node) of a Slurm step; "2(x3),1" counts node by node."""
    if not all(environment.get(name) for name in _SLURM):
        return None, None
    per_node: list[str] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        per_node += [found[1]] * int(found[2] or 1) if found else []
    node = environment.get("SLURM_NODEID", "")
    here = per_node[int(node)] if node.isdigit() and int(node) < len(per_node) else None
    return environment.get("SLURM_LOCALID"), here


def _seat(
    by: str,
    count: str,
    number: str,
    local: tuple[str | None, str | None],
    coordinator: Callable[[], str],
    names: tuple[str, str],
) -> _Seat:
    processes, own = _number(names[0], count), _number(names[1], number)
    if processes < 1:
        raise _bad_value(names[0], count, "at least 1")
    if own >= processes:
        raise HarnessError(
            "cluster-contradiction",
            f"{by}: the number of this process is not below the number of processes",
            got=f"{names[1]}={own}, {names[0]}={processes}",
            need=f"0 to {processes - 1}",
            fix=f"number the processes from 0; set {names[0]} to how many there are",
        )
    rank, size = (_number("the number on this node", text) if text else None for text in local)
    return _Seat(by, processes, own, (0, 1) if rank is None or size is None else (rank, size), coordinator)


def _check_inside(inner: _Seat, outer: _Seat) -> None:
    """Refuses two launchers of which neither can have started the other.

    An inner launcher starts a whole number of processes for each one of the outer. Variables that were
    written before srun have the batch script's number in every process; equal counts show that.
    """
    same = (
        inner.processes == outer.processes
        and inner.by == "explicit variables"
        and inner.number != outer.number
    )
    if inner.processes % outer.processes == 0 and not same:
        return
    raise HarnessError(
        "cluster-contradiction",
        f"{inner.by} and {outer.by} disagree about which process this is",
        got="; ".join(f"{seat.by}: {seat.number} of {seat.processes}" for seat in (inner, outer)),
        need="one launcher, or one that the other one started in each of its processes",
        fix=(
            f"unset the variables of one of them; in a batch script, {ID} has to be set inside of srun, where"
            " SLURM_PROCID is that of the process"
        ),
    )


def _devices(environment: Environment, seat: _Seat) -> tuple[int, ...] | None:
    """The numbers of this process's devices among the visible ones. None for all of them.

    Raises: HarnessError "cluster-devices" if several processes share a node and nothing says how.
    """
    given = environment.get(LOCAL_DEVICES)
    if given:
        return tuple(_number(LOCAL_DEVICES, text.strip()) for text in given.split(","))
    rank, size = seat.local
    if size < 2 or environment.get("JAX_PLATFORMS") == "cpu":
        return None
    visible = [name for name in environment.get(VISIBLE, "").split(",") if name]
    bound = environment.get(_PER_TASK, "").rpartition(":")[2] if seat.by not in _OWN_SHARES else ""
    if len(visible) == 1 or str(len(visible)) == bound:
        # The launcher shows each process its own.
        return None
    share, rest = divmod(len(visible), size)
    if rest or not share or rank >= size:
        raise HarnessError(
            "cluster-devices",
            f"{size} processes share this node, and nothing says which devices are whose",
            got=f"{VISIBLE}={environment.get(VISIBLE, '')}",
            need=f"one process a node, or {LOCAL_DEVICES} in each process",
            fix="start one process a node (srun --ntasks-per-node=1): it takes all devices of the node",
        )
    return tuple(range(rank * share, (rank + 1) * share))


def _address(text: str, by: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise HarnessError(
            "cluster-coordinator",
            f"{by}: the coordinator's address is not a host and a port",
            got=text or "nothing",
            need="HOST:PORT of process 0, such as node1:61440",
            fix=f"{COORDINATOR}=HOST:PORT in every process",
        )
    return text


def port_taken(port: int, error: OSError) -> HarnessError:
    """The error of process 0 if it cannot listen at the coordinator's port."""
    return HarnessError(
        "coordinator-port",
        f"process 0 cannot listen at port {port}",
        got=error.strerror,
        need="a port that no other program uses",
        fix=f"set {COORDINATOR}=HOST:PORT with another port, the same in every process",
    )


def _no_coordinator(uri: str) -> HarnessError:
    return HarnessError(
        "cluster-coordinator",
        "Open MPI does not say on which host process 0 runs",
        got=f"{_ORTE}={uri}" if uri else f"{_ORTE} is not set",
        need=f"{COORDINATOR}, the same in every process",
        fix=f"mpirun -x {COORDINATOR}=HOST:PORT, with the host of rank 0",
    )


def _whole_set(whose: str, values: Mapping[str, str]) -> None:
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise HarnessError(
            "cluster-half-set",
            f"{whose} are set in part: {', '.join(missing)} lacks",
            got=", ".join(f"{name}={value}" for name, value in values.items() if value),
            need=", ".join(values),
            fix="set all of them in every process, or none of them to train on this machine alone",
        )


def _has(environment: Environment, names: tuple[str, ...]) -> bool:
    return all(environment.get(name) for name in names)


def _number(name: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise _bad_value(name, text, "a whole number")
    return int(text)


def _bad_value(name: str, text: str, need: str) -> HarnessError:
    return HarnessError(
        "cluster-value",
        f"{name} is not what a launcher sets",
        got=text or "nothing",
        need=need,
        fix=f"unset {name}, or let the launcher set it",
    )
