"""Tests what launch takes and refuses, before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.artifacts.launched import Launched
from harness.errors import HarnessError
from harness.launch.ask import Wanted, ask
from harness.launch.asked import Asked, seconds
from harness.launch.submit import submit
from harness.launch.write import launched, write
from harness.recipe.load import load_recipe, to_yaml
from tests.support.launching import DIGEST, IMAGE, asked
from tests.test_cli import harness

POD = {"engine": "kubernetes", "image": IMAGE, "claim": "lab", "name": "a"}


def no_plan(*_: object) -> Any:
    raise AssertionError("nothing was to be planned")


def wanted(**more: Any) -> Asked:
    fields: dict[str, Any] = {"image": None} | {
        name: more.pop(name) for name in list(more) if name not in Wanted._fields and name != "plan"
    }
    plan = more.pop("plan", no_plan)
    typed: dict[str, Any] = dict.fromkeys(Wanted._fields)
    typed |= {"engine": "slurm", "hosts": 2, "recipe": "smoke", "sets": [], "train": [], "environment": []}
    typed |= {"gpus": None if "gpu" in more else 0, "submit": False}
    return ask(Wanted(**(typed | more)), plan, fields)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"gpus": None}, "launch-devices", "neither"),
        ({"gpus": 1, "gpu": "h100"}, "launch-devices", "both"),
        ({"gpu": "h100:none"}, "launch-devices", "h100:8"),
        ({"gpu": "h100", "image": "harness:cuda"}, "launch-digest", "another image"),
        ({"gpu": "h100", "partition": "a b"}, "launch-invalid", "letters, digits"),
        ({"gpu": "h100", "environment": ["X"]}, "launch-env", "NAME=VALUE"),
        ({"gpu": "h100", "engine": "kubernetes", "image": IMAGE}, "launch-needs", "--claim"),
        ({"hosts": 3}, "launch-batch", "train.global_batch=3"),
        ({"hosts": 2, "sets": ["train.global_batch=1"]}, "launch-batch", "train.global_batch=2"),
        ({"run": Path("a"), "name": "b"}, "run-and-name", "one of the two"),
        ({"engine": "kubernetes", "run": Path("a")}, "launch-run", "--name"),
        ({"engine": "kubernetes", "claim": "lab"}, "launch-needs", "--image"),
        ({"engine": "kubernetes", "image": IMAGE}, "launch-needs", "--claim"),
        ({"engine": "compose"}, "launch-needs", "--image"),
        ({"engine": "kubernetes", "image": "harness:cuda", "claim": "lab"}, "launch-digest", "imagetools"),
        ({"engine": "compose", "image": "/a.sqsh"}, "launch-digest", "no file"),
        ({"image": "harness:cuda"}, "launch-digest", "another image"),
        ({"image": f"Harness@{DIGEST}"}, "launch-invalid", "image"),
        ({"engine": "ray", "partition": "gpu"}, "launch-option", "--partition"),
        ({"engine": "ray", "grace_s": 60}, "launch-option", "--grace"),
        ({"user": "1000:1000"}, "launch-option", "--user"),
        ({"train": ["--steps=0"]}, "recipe-invalid", "train.steps"),
        ({"partition": "a b"}, "launch-invalid", "letters, digits"),
        ({"time": "1:00:00:00"}, "launch-invalid", "DAYS-H:M:S"),
        ({"engine": "compose", "image": IMAGE, "submit": True}, "launch-option", "--submit"),
        ({"engine": "kubernetes", "image": IMAGE, "claim": "lab", "name": "7"}, "launch-name", "letter"),
        ({"engine": "kubernetes", "image": IMAGE, "claim": "lab", "name": "a" * 41}, "launch-name", "40"),
        ({"name": "a\nb"}, "run-name-invalid", "control characters"),
        ({"name": ""}, "run-name-invalid", "empty"),
        ({"name": "a/b"}, "run-name-invalid", "separator"),
        (POD | {"namespace": "a.b"}, "launch-invalid", "namespace"),
        (POD | {"namespace": "a" * 64}, "launch-invalid", "namespace"),
        (POD | {"secret": "a..b"}, "launch-invalid", "secret"),
        (POD | {"user": "0:0"}, "launch-user", "runAsNonRoot"),
        (POD | {"user": f"1:{2**31}"}, "launch-user", "2147483648"),
        ({"partition": "gpu; rm -rf /"}, "launch-invalid", "partition"),
        ({"account": "a\n#SBATCH --wrap=x"}, "launch-invalid", "account"),
        ({"time": "soon"}, "launch-invalid", "time"),
        ({"time": "10", "grace_s": 600}, "launch-time", "1200 s"),
        ({"out": Path("a\nb")}, "launch-invalid", "out"),
        ({"environment": ["NAME"]}, "launch-env", "NAME=VALUE"),
        ({"environment": ["A B=c"]}, "launch-env", "NAME=VALUE"),
        ({"environment": ["WANDB_API_KEY=abc"]}, "launch-env", "secret"),
        ({"user": "me"}, "launch-user", "UID:GID"),
        ({"recipe": "smok"}, "recipe-unknown", "smoke"),
        ({"sets": ["train.stps=1"]}, "recipe-invalid", "'steps'"),
        ({"hosts": 0}, "launch-invalid", "hosts"),
    ],
)
def test_what_cannot_run_is_refused_with_its_fix(options: dict[str, Any], code: str, says: str) -> None:
    if options.get("hosts") == 0:
        with pytest.raises(HarnessError) as refused:
            asked("slurm", hosts=0)
    else:
        with pytest.raises(HarnessError) as refused:
            wanted(**options)
    assert refused.value.code == code
    assert says in str(refused.value)
    assert refused.value.fix


def test_a_key_is_never_repeated_in_the_refusal() -> None:
    with pytest.raises(HarnessError) as refused:
        wanted(environment=["WANDB_API_KEY=abcdef"])
    assert "abcdef" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:00:00", 3600),
        ("2-12", 216_000),
        ("1-0:30", 88_200),
        ("1-1:1:1", 90_061),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(text: str, expected: int) -> None:
    assert seconds(text) == expected


def test_all_hosts_find_the_run_under_one_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", "some/cache")
    monkeypatch.delenv("HARNESS_RUNS", raising=False)
    each = wanted()
    assert (each.run, each.out) == (f"{tmp_path}/runs/smoke-001", f"{tmp_path}/launch/smoke-001")
    assert each.environment["HARNESS_CACHE"] == str(tmp_path / "some/cache")
    assert wanted(run=Path("there/one")).run == f"{tmp_path}/there/one"
    assert wanted(name="two").run == f"{tmp_path}/runs/two"


def test_a_recipe_file_is_named_by_its_whole_path_and_carried_as_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(load_recipe("smoke", ["train.seed=5"])))
    each = wanted(recipe=str(file), sets=["train.steps=3"])
    assert each.recipe == str(file)
    assert each.recipe_text == to_yaml(load_recipe(str(file)))
    assert "--set=train.steps=3" in each.options
    assert wanted(recipe="smoke").recipe_text is None


def test_a_plan_is_asked_for_all_hosts_and_says_how_many_gpus_one_has() -> None:
    heard: list[object] = []

    def plan(*what: object) -> Any:
        heard.append(what)
        return SimpleNamespace(chosen=SimpleNamespace(reason="exact"), device="2 x 8 x h100")

    each = wanted(gpu="h100:8", plan=plan, sets=["train.global_batch=32"])
    assert heard == [("h100:8x2", "smoke", ["train.global_batch=32"])]
    assert (each.gpus, each.plan) == (8, "2 x 8 x h100, exact")


def test_what_does_not_fit_is_refused() -> None:
    nothing = SimpleNamespace(
        chosen=None, device="rtx_3060", candidates=[SimpleNamespace(reason="too large")]
    )
    with pytest.raises(HarnessError) as refused:
        wanted(gpu="rtx_3060", plan=lambda *_: nothing)
    assert (refused.value.code, refused.value.got) == ("launch-plan", "too large")


def test_a_file_that_was_changed_by_hand_is_not_written_over(tmp_path: Path) -> None:
    each = asked("slurm", out=str(tmp_path / "out"))
    (path,) = write(each)
    assert write(each) == [path]
    path.write_text("changed")
    with pytest.raises(HarnessError) as refused:
        write(each)
    assert refused.value.code == "launch-exists"
    assert path.read_text() == "changed"


def test_the_answer_is_kept_beside_the_files(tmp_path: Path) -> None:
    each = asked("kubernetes", out=str(tmp_path))
    made = launched(each, write(each))
    assert Launched.model_validate_json((tmp_path / "launch.json").read_text()) == made
    assert made.start == [f"kubectl apply -f {path}" for path in made.files]


def test_the_verb_prints_the_artifact_and_writes_nothing_that_it_refuses(tmp_path: Path) -> None:
    words = ["launch", "--engine=slurm", "--hosts=2", "--recipe=smoke", "--gpus=0", f"--out={tmp_path / 'o'}"]
    done = harness(*words, "--json", HARNESS_RUNS=str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    made = Launched.model_validate_json(done.stdout)
    assert made.files == [str(tmp_path / "o" / "job.sbatch")]
    assert json.loads((tmp_path / "o" / "launch.json").read_text())["hosts"] == 2
    refused = harness(*words, "--time=soon", f"--out={tmp_path / 'p'}", HARNESS_RUNS=str(tmp_path / "runs"))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "[launch-invalid]" in refused.stderr
    assert not (tmp_path / "p").exists()
    assert not (tmp_path / "runs").exists()


def test_without_slurm_the_script_is_written_and_the_refusal_says_where_to_go(tmp_path: Path) -> None:
    words = ["launch", "--engine=slurm", "--hosts=2", "--recipe=smoke", "--gpus=0", f"--out={tmp_path / 'o'}"]
    done = harness(*words, "--submit", HARNESS_RUNS=str(tmp_path / "runs"), PATH=str(tmp_path))
    assert done.returncode == 2
    assert "[slurm-missing]" in done.stderr
    assert (tmp_path / "o" / "job.sbatch").exists()


@pytest.mark.parametrize(
    ("sbatch", "said"),
    [
        ("echo Welcome; echo '4711;big'", "4711"),
        ("exec sleep 9", "slurm-silent"),
        ("exit 1", "slurm-refused"),
    ],
)
def test_the_job_is_the_last_word_of_sbatch_and_silence_is_no_traceback(
    sbatch: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{sbatch}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("harness.launch.submit._ASK_S", 0.5)
    if said.isdigit():
        assert submit(tmp_path / "job.sbatch") == said
        return
    with pytest.raises(HarnessError) as refused:
        submit(tmp_path / "job.sbatch")
    assert refused.value.code == said


@pytest.mark.parametrize(
    ("option", "code"), [("--net=5furlongs", "net-rate-invalid"), ("--allow=nonsense", "check-unknown")]
)
def test_what_the_hosts_would_refuse_is_refused_before_a_job_waits(
    option: str, code: str, tmp_path: Path
) -> None:
    words = ["launch", "--engine=slurm", "--hosts=2", "--recipe=smoke", "--gpus=1", "--name=a"]
    done = harness(*words, option, f"--out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert f"[{code}]" in done.stderr
    assert not (tmp_path / "out").exists()
