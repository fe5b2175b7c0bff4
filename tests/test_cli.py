"""Tests the command line's contract: stdout, exit codes, and one screen for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.artifacts import Comparison, Dataset, Machine, NormStats
from harness.errors import HarnessError
from harness.run.directory import cache_root
from tests.support import lerobot_writer as writer


def harness(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_json_is_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    for verb, kind in (("probe", Machine), ("data", Dataset), ("stats", NormStats)):
        done = harness(verb, "--json", "--run", str(tmp_path))
        assert done.returncode == 0, done.stderr
        printed = kind.model_validate_json(done.stdout)
        assert kind.model_validate_json((tmp_path / kind.FILE).read_text()) == printed


def test_a_verb_finds_its_file_current_and_leaves_it(tmp_path: Path) -> None:
    harness("stats", "--run", str(tmp_path))
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in ("dataset.json", "norm_stats.json")}
    assert harness("stats", "--run", str(tmp_path)).returncode == 0
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    harness("stats", "--run", str(tmp_path), "--set=model.action_horizon=5")
    assert (tmp_path / "norm_stats.json").stat().st_mtime_ns != before["norm_stats.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train", "--recipe=smok"], "recipe-unknown", "smoke"),
        (["train", "--set=train.globl_batch=3"], "recipe-invalid", "global_batch"),
        (["train", "--set=steps=3"], "recipe-invalid", "did you mean 'train.steps'"),
        (["train", "--set=train.steps"], "override-invalid", "key=value"),
        (["train", "--set=train.steps=many"], "recipe-invalid", "train.steps"),
        (["train", "--set=train.steps=-3"], "recipe-invalid", "(given: -3)"),
        (["train", "--set=train.steps=["], "override-invalid", "YAML"),
        (["train", "--set=train.optimizer.schedule.peak=.inf"], "recipe-invalid", "finite"),
        (["train", "--set=train.optimizer.schedule.peak=yes"], "recipe-invalid", "is no number"),
        (["train", "--set=train.steps=on"], "recipe-invalid", "is no number"),
        (["train", "--set=train.seed=4294967296"], "recipe-invalid", "train.seed"),
        (["train", "--set=model.paligemma={variant: dummy, variant: dummy}"], "override-invalid", "twice"),
        (["train", "--set=weights.source=https://me:secret@host/params"], "recipe-invalid", "password"),
        (["train", "--recipe=BINARY"], "recipe-invalid", "YAML file"),
        (["train", "--run=a", "--name=b"], "run-and-name", "one of the two"),
        (["train", "--resume", "--run=nowhere"], "nothing-to-resume", "--resume"),
        (["plan", "--gpu=rtx_a600"], "gpu-unknown", "rtx_a6000"),
        (["plan", "--gpu=a40", "--device=cpu"], "options-together", "--device cpu"),
        (["plan", "--gpu=a40", "--device=tpu"], "device-unknown", "cpu or cuda"),
        (["plan", "--host-ram-gib=1e9"], "memory-invalid", "--host-ram-gib 64"),
        (["train", "--device=gpu"], "device-unknown", "--device cuda"),
        (["train", "--allow=Wandb_key"], "check-unknown", "--allow 'wandb key'"),
        (["train", "--allow=nonsense"], "check-unknown", "harness doctor"),
        (["plan", "--matrix", "--json"], "options-together", "--json"),
        (["plan", "--gpu=a40:none"], "gpu-count-invalid", "a40:2"),
        (["plan", "--gpu=a40:8"], "more-devices-than-rows", "train.global_batch=8"),
        (["plan", "--recipe=pi05_libero"], "no-gpu", "--gpu"),
        (["inspect"], "path-missing", "harness inspect PATH"),
        (["report", "--run=nowhere"], "run-missing", "harness report"),
        (
            ["plan", "--set=model.paligemma.lora={rank: 4, alpha: 4}"],
            "lora-trains-everything",
            "train.trained=lora",
        ),
    ],
)
def test_bad_input_is_one_screen_with_the_fix(
    arguments: list[str], code: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00bin")
    arguments = [argument.replace("BINARY", str(tmp_path / "binary.yaml")) for argument in arguments]
    done = harness(
        *arguments,
        HARNESS_RUNS=str(tmp_path / "runs"),
        HARNESS_CACHE=str(tmp_path / "cache"),
        HARNESS_RECIPE="smoke",
    )
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert says in done.stderr
    assert "fix:" in done.stderr
    assert len(done.stderr.splitlines()) < 20
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_is_not_a_dataset(tmp_path: Path) -> None:
    done = harness("data", "--dataset", str(tmp_path))
    assert done.returncode == 2
    assert "fix:" in done.stderr


def test_a_broken_dataset_leaves_nothing_behind(tmp_path: Path) -> None:
    root = writer.write(tmp_path / "set")
    path = root / "data/chunk-000/episode_000001.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    mapped = [
        "--set=data.state=observation.state",
        "--set=data.actions=action",
        "--set=data.cameras.base_0_rgb=cam",
    ]
    for verb in (["data", "--html"], ["stats", "--compare", str(tmp_path)]):
        done = harness(
            *verb,
            "--dataset",
            str(root),
            *mapped,
            "--set=data.cameras.left_wrist_0_rgb=null",
            "--run",
            str(tmp_path / "run"),
        )
        assert done.returncode == 2
        assert "[dataset-file-corrupt]" in done.stderr
        assert "episode_000001.parquet" in done.stderr
        assert done.stdout == ""
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]


def test_a_look_at_the_data_is_a_file_of_the_run_and_not_of_the_answer(tmp_path: Path) -> None:
    done = harness("data", "--html", "--json", "--run", str(tmp_path))
    assert done.returncode == 0, done.stderr
    Dataset.model_validate_json(done.stdout)
    assert str(tmp_path / "dataset.html") in done.stderr
    assert (tmp_path / "dataset.html").read_text().startswith("<!doctype html>")


def test_statistics_beside_others(tmp_path: Path) -> None:
    harness("stats", "--run", str(tmp_path))
    stats = json.loads((tmp_path / "norm_stats.json").read_text())
    other = tmp_path / "other.json"
    stats["norm_stats"]["actions"]["mean"][3] += 100
    other.write_text(json.dumps({"norm_stats": stats["norm_stats"]}))
    done = harness("stats", "--run", str(tmp_path), "--compare", str(other), "--json")
    assert done.returncode == 0, done.stderr
    found = Comparison.model_validate_json(done.stdout)
    assert (found.differences[0].key, found.differences[0].dimension, found.differences[0].statistic) == (
        "actions",
        3,
        "mean",
    )
    assert sum(d.ours != d.theirs for d in found.differences) == 1
    assert Comparison.model_validate_json((tmp_path / "comparison.json").read_text()) == found
    assert "actions[3]" in harness("stats", "--run", str(tmp_path), "--compare", str(other)).stdout
    for name, code in (("nothing.json", "norm-stats-not-found"), ("dataset.json", "norm-stats-invalid")):
        refused = harness("stats", "--run", str(tmp_path), "--compare", str(tmp_path / name))
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"[{code}]" in refused.stderr


def test_inspect_says_no_when_nothing_is_whole(tmp_path: Path) -> None:
    done = harness("inspect", str(tmp_path))
    assert done.returncode == 2
    assert "[" in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault_and_no_file_takes_their_place(closed: str, tmp_path: Path) -> None:
    """As a service without a terminal may be started. The next files that are opened get other numbers."""
    code = "import os; from harness import cli; cli._open_streams(); print('said', flush=True)\n"
    code += "file = os.open('file', os.O_CREAT | os.O_WRONLY); os.write(2, b'said'); assert file > 2"
    script = f'"$0" -c "$1" {closed}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, code],
        cwd=tmp_path,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


def test_a_user_without_a_home_is_told_where_a_cache_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HARNESS_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(HarnessError) as caught:
        cache_root()
    assert caught.value.code == "home-unknown"
    monkeypatch.setenv("HARNESS_CACHE", "/elsewhere")
    assert cache_root() == Path("/elsewhere")


def test_every_verb_explains_itself() -> None:
    top = harness("--help")
    assert top.returncode == 0
    for verb in ("probe", "plan", "data", "stats", "train", "inspect", "predict", "export", "report"):
        assert verb in top.stdout
        assert harness(verb, "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["--help"], ["jax", "harness.recipe.schema"]),
        (["probe", "--json"], ["jax"]),
        (["inspect", "--help"], ["jax"]),
        (["--version"], ["jax", "pydantic"]),
    ],
)
def test_quick_verbs_import_no_more_than_they_need(arguments: list[str], unneeded: list[str]) -> None:
    program = "\n".join(
        [
            f"import sys; sys.argv[1:] = {arguments!r}",
            "from harness.cli import main",
            "try:",
            "    main()",
            "except SystemExit:",
            "    pass",
            f"assert not sys.modules.keys() & set({unneeded!r})",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_plan_that_does_not_fit_exits_1_and_says_by_how_much(tmp_path: Path) -> None:
    """A model far larger than any memory: rejected by the compiler's figure."""
    done = harness(
        "plan", "--json", "--device=cpu", "--set=model.vocab_size=2000000000", HARNESS_CACHE=str(tmp_path)
    )
    assert done.returncode == 1, done.stderr
    plan = json.loads(done.stdout)
    assert plan["chosen"] is None
    assert plan["candidates"][0]["verdict"] == "rejected"
    assert "too much" in plan["candidates"][0]["reason"]


@pytest.mark.parametrize("arguments", [["probe", "--json"], ["probe"], ["--help"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_at_stdout_is_a_refusal_in_words(arguments: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "harness.cli", *arguments],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 2
    assert "[output-failed]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("gpu", "code"), [("rtx_409", 2), ("rtx_3060", 1), ("h100", 0)])
def test_the_exit_code_says_the_answer_also_to_whoever_reads_no_more(gpu: str, code: int) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as nobody, Path("/dev/full").open("w") as full:
        for stderr in (nobody, full):
            done = subprocess.run(
                [sys.executable, "-m", "harness.cli", "plan", "--exact", "--gpu", gpu],
                env=os.environ | {"HARNESS_RECIPE": "pi05_libero"},
                stdout=nobody,
                stderr=stderr,
                timeout=300,
                check=False,
            )
            assert done.returncode == code


def test_a_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, sys; os.rmdir(os.getcwd()); sys.argv = ['harness', 'probe'];"
            " from harness.cli import main; main()",
        ],
        cwd=gone,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "[directory-gone]" in done.stderr
    assert "Traceback" not in done.stderr
