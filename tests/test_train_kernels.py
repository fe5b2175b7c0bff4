"""Tests the recorded choice of kernels: written at the first compilation, used at every other.

The flags must be those of this jaxlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from harness.plan.cards import CARDS
from harness.plan.compile import ABSENT_GPU_OPTIONS
from harness.run.directory import KERNELS, RunDir, sha256_file
from harness.run.peers import Peers
from harness.run.surroundings import DETERMINISTIC, deterministic, is_deterministic
from harness.train.kernels import Kernels, compile_pinned, written_to
from tests.support.threads import together

DUMP, LOAD, ALL = (
    "xla_gpu_dump_autotune_results_to",
    "xla_gpu_load_autotune_results_from",
    "xla_gpu_require_complete_aot_autotune_results",
)


class Xla:
    """Writes its choice where it is told to; with a file, refuses a program that the file does not know."""

    def __init__(self, program: str) -> None:
        self.program, self.asked = program, []

    def __call__(self, options: dict[str, str]) -> str:
        self.asked.append(options)
        if DUMP in options:
            Path(options[DUMP]).write_text(self.program)
        if options.get(ALL) == "True" and Path(options[LOAD]).read_text() != self.program:
            raise RuntimeError(
                "NOT_FOUND: Failed to get configs. No cached config found for HLO instr: %fusion"
            )
        return f"executable of {self.program}"


def test_the_first_compilation_writes_them_and_the_next_uses_them(tmp_path: Path) -> None:
    run, warned = RunDir(tmp_path), []
    xla = Xla("a")
    made, kernels = compile_pinned(run, "cuda", xla, warned.append)
    assert (made, kernels.sha256) == ("executable of a", sha256_file(tmp_path / KERNELS))
    assert [path.name for path in tmp_path.iterdir()] == [KERNELS]
    assert compile_pinned(run, "cuda", xla, warned.append) == (made, kernels)
    assert xla.asked[1] == {LOAD: str(tmp_path / KERNELS), ALL: "True"}
    assert warned == []


def test_of_several_processes_the_first_chooses_and_the_others_load_its_choice(tmp_path: Path) -> None:
    xlas = [Xla("a"), Xla("a"), Xla("a")]

    def compiled(peers: Peers) -> object:
        return compile_pinned(RunDir(tmp_path), "cuda", xlas[peers.index], print, peers=peers)

    assert len(set(together(3, compiled))) == 1
    by_itself = {"xla_gpu_shard_autotuning": "False"}
    assert [DUMP in xla.asked[0] for xla in xlas] == [True, False, False]
    for xla in xlas[1:]:
        assert xla.asked == [{LOAD: str(tmp_path / KERNELS), ALL: "True"} | by_itself]
    assert [path.name for path in tmp_path.iterdir()] == [KERNELS]


def test_of_several_processes_only_the_first_writes_a_choice(tmp_path: Path) -> None:
    """XLA wrote none, as where the program came from a cache."""
    asked: list[dict[str, str]] = []

    def compiled(peers: Peers) -> Kernels:
        return compile_pinned(RunDir(tmp_path), "cuda", asked.append, print, peers=peers)[1]

    first, other = together(2, compiled)
    assert first.sha256 is None
    assert other == Kernels(None, f"process 0 has written no {KERNELS}")
    assert [DUMP in options for options in asked] == [True, False]


def test_a_program_that_the_plan_compiled_comes_from_the_cache_with_its_kernels(tmp_path: Path) -> None:
    """The plan asked with the same options, so JAX's cache answers, and XLA writes nothing again."""
    runs = [RunDir(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        run.path.mkdir()
    choice, xla = tmp_path / "cache" / "kernels" / "of-a.pbtxt", Xla("a")
    xla(written_to(choice))
    asked: list[dict[str, str]] = []
    for run in runs:
        _, kernels = compile_pinned(run, "cuda", asked.append, print, choice=choice)
        assert kernels.sha256 == sha256_file(run.path / KERNELS) == sha256_file(choice)
        assert [path.name for path in run.path.iterdir()] == [KERNELS]
    assert asked == [xla.asked[0], xla.asked[0]]


def test_a_program_from_the_cache_without_its_kernels_is_compiled_again(tmp_path: Path) -> None:
    choice, xla = tmp_path / "cache" / "of-a.pbtxt", Xla("a")

    def from_cache(options: dict[str, str]) -> str:
        return "from the cache" if options.get(DUMP) == str(choice) else xla(options)

    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    made, kernels = compile_pinned(run, "cuda", from_cache, print, choice=choice)
    assert (made, kernels.sha256) == ("executable of a", sha256_file(run.path / KERNELS))


def test_a_cache_that_cannot_be_written_costs_the_program_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    choice = tmp_path / "cache" / "kernels" / "of-a.pbtxt"
    assert written_to(choice) == {}
    made, kernels = compile_pinned(RunDir(tmp_path), "cuda", Xla("a"), print, choice=choice)
    assert (made, kernels.sha256) == ("executable of a", sha256_file(tmp_path / KERNELS))


def test_another_program_is_compiled_all_the_same_and_said(tmp_path: Path) -> None:
    run, warned = RunDir(tmp_path), []
    compile_pinned(run, "cuda", Xla("a"), warned.append)
    other = Xla("b")
    made, kernels = compile_pinned(run, "cuda", other, warned.append)
    assert made == "executable of b"
    assert kernels.sha256 is None
    assert len(warned) == 1
    assert (tmp_path / KERNELS).read_text() == "a"


def test_an_error_of_another_kind_is_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / KERNELS).write_text("a")

    def fails(_: dict[str, str]) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        compile_pinned(RunDir(tmp_path), "cuda", fails, print)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    assert compile_pinned(RunDir(tmp_path), "cpu", lambda options: options, print) == (
        {},
        (None, "a CPU's kernels are not chosen by timing"),
    )
    _, kernels = compile_pinned(RunDir(tmp_path), "cuda", lambda _: None, print)
    assert kernels.sha256 is None
    assert kernels.note


def test_the_flag_is_added_where_nobody_has_decided() -> None:
    assert deterministic({}) == f"{DETERMINISTIC}=true"
    assert deterministic({"XLA_FLAGS": "--a=1"}) == f"--a=1 {DETERMINISTIC}=true"
    assert deterministic({"XLA_FLAGS": f"{DETERMINISTIC}=false"}) == f"{DETERMINISTIC}=false"
    for flags, same in (
        (f"{DETERMINISTIC}=true", True),
        (f"{DETERMINISTIC}=false", False),
        ("", False),
        ("--xla_gpu_exclude_nondeterministic_ops", True),
    ):
        assert is_deterministic({"XLA_FLAGS": flags}) is same


# --- the real flags, by compiling for a card that is not here


@pytest.fixture(scope="module")
def lowered() -> Any:
    topology = topologies.get_topology_desc(
        platform="cuda", target_config=CARDS["rtx_a6000"].target(), topology="1x1x1"
    )
    place = NamedSharding(topologies.make_mesh(topology, (1,), ("fsdp",)), PartitionSpec())
    step = jax.jit(jax.grad(lambda w, i: (w[i] @ w).sum()), out_shardings=place)
    shapes = (
        jax.ShapeDtypeStruct((64, 64), "float32", sharding=place),
        jax.ShapeDtypeStruct((8,), "int32", sharding=place),
    )
    return step.trace(*shapes).lower(lowering_platforms=("cuda",))


def test_jaxlib_knows_the_flags(lowered: Any, tmp_path: Path) -> None:
    """An unknown flag in XLA_FLAGS ends the process; as an option of a compilation it is an error."""
    known = {
        "xla_gpu_deterministic_ops": "True",
        "xla_gpu_shard_autotuning": "False",
        "xla_gpu_exclude_nondeterministic_ops": "True",
        DUMP: str(tmp_path / "a.pbtxt"),
    }
    lowered.compile(compiler_options=ABSENT_GPU_OPTIONS | known)
    with pytest.raises(Exception, match="xla_gpu_no_such_flag"):
        lowered.compile(compiler_options=ABSENT_GPU_OPTIONS | {"xla_gpu_no_such_flag": "True"})


def test_xla_refuses_a_program_whose_kernels_are_not_on_file(lowered: Any, tmp_path: Path) -> None:
    """With timing on, as on a real card: there is no choice on file, so it must be refused in the words that
    are looked for.
    """
    timed = {"xla_gpu_enable_triton_gemm": "False"}

    def compiled(options: dict[str, str]) -> None:
        # The file itself is read once a process, so its content is not what is tried here.
        lowered.compile(
            compiler_options=timed | {name: value for name, value in options.items() if name == ALL}
        )

    (tmp_path / KERNELS).write_text("")
    warned: list[str] = []
    _, kernels = compile_pinned(RunDir(tmp_path), "cuda", compiled, warned.append)
    assert kernels.sha256 is None
    assert len(warned) == 1


def test_deterministic_scatters_are_another_program(lowered: Any) -> None:
    plain, same = (
        lowered.compile(compiler_options=ABSENT_GPU_OPTIONS | {"xla_gpu_deterministic_ops": flag}).as_text()
        for flag in ("False", "True")
    )
    assert len(same) > len(plain)
