"""Tests which trainer a pasted line starts, and which parts of the line belong to the shell."""

from __future__ import annotations

import contextlib
import shlex
import time

import pytest
from typer.testing import CliRunner

from harness.artifacts import OpenpiCommand
from harness.cli import app
from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi.imported import explain
from harness.openpi.options import read
from harness.openpi.shell_line import LONGEST, simple_commands
from harness.openpi.trainer_line import whose
from harness.show.openpi import openpi_view
from tests.test_openpi_import import checks

PLAIN = "uv run scripts/train.py pi05_libero --exp-name=x --batch-size=8"
TORCH = (
    "uv run torchrun --standalone --nnodes=1 --nproc_per_node=6 scripts/train_pytorch.py pi05_libero"
    " --exp_name x"
)
LEROBOT = (
    "--dataset.repo_id=me/ds --policy.type=pi05 --policy.pretrained_path=lerobot/pi05_base --steps=3000"
    " --batch_size=32"
)


def both(line: str) -> list[OpenpiCommand]:
    """The line as one text, and as `shlex.split` hands it over."""
    return [explain([line], None), explain(shlex.split(line), None)]


@pytest.mark.parametrize(
    ("line", "cut"),
    [
        (f"{PLAIN} 2>&1 | tee logs/x.txt", ["2>&1", "| tee logs/x.txt"]),
        (f"{PLAIN} |& tee x", ["|& tee x"]),
        (f"nohup {PLAIN} > log.txt 2>&1 &", ["> log.txt", "2>&1", "&"]),
        (f"{PLAIN} &> log", ["&> log"]),
        (f"{PLAIN} >> log 2> err < /dev/null", [">> log", "2> err", "< /dev/null"]),
        (f"{PLAIN} ; echo done", ["; echo done"]),
        (f"{PLAIN} && shutdown -h now || echo no", ["&& shutdown -h now", "|| echo no"]),
        (f"cd openpi && source .venv/bin/activate && {PLAIN}", ["cd openpi", "&& source .venv/bin/activate"]),
        (f"export WANDB_API_KEY=0123456789 ; {PLAIN}", ["export WANDB_API_KEY=…"]),
        (f"CUDA_VISIBLE_DEVICES=0 XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 {PLAIN}", []),
        (f"CUDA_VISIBLE_DEVICES=0 nohup env A=b {PLAIN} &", ["&"]),
        (
            f"uv run scripts/compute_norm_stats.py --config-name pi05_libero && {PLAIN}",
            ["uv run scripts/compute_norm_stats.py --config-name pi05_libero"],
        ),
        ("pi05_libero --exp-name=x --batch-size=8 2>&1 | tee x", ["2>&1", "| tee x"]),
    ],
)
def test_what_the_shell_does_is_cut_and_named(line: str, cut: list[str]) -> None:
    for found in both(line):
        assert (found.config, found.options) == ("pi05_libero", {"exp-name": "x", "batch-size": 8})
        assert found.cut == cut
        assert found.trainer == "openpi"
        assert found.device_bytes is not None
        assert found.meant == "a recipe of ours that does the same"


@pytest.mark.parametrize(
    "line",
    [
        f"bash -lc '{PLAIN}'",
        f'ssh gpu "cd openpi && nohup {PLAIN} > log 2>&1 &"',
        f"tmux new -d -s a \"bash -c '{PLAIN}'\"",
        f"(base) me@box:~/openpi$ {PLAIN}",
        f"$ {PLAIN}",
        PLAIN.replace(" --", " \\\n    --"),
        PLAIN.replace(" --", " `\r\n    --"),
        f"#!/bin/bash\n#SBATCH --gres=gpu:1\nset -e\nsrun {PLAIN}  # the run\n",
        f"for i in 1 2; do {PLAIN}; done",
        PLAIN.replace("scripts/train.py", "-m scripts.train").replace("uv run", "python"),
        PLAIN.replace(" ", "\N{NO-BREAK SPACE}"),
    ],
)
def test_a_line_is_found_where_people_put_it(line: str) -> None:
    found = explain([line], None)
    assert (found.config, found.options, found.trainer) == (
        "pi05_libero",
        {"exp-name": "x", "batch-size": 8},
        "openpi",
    )


@pytest.mark.parametrize("asked", ["$(touch {})", "`touch {}`", '"$(touch {})"'])
def test_a_substitution_is_never_run(tmp_path_factory: pytest.TempPathFactory, asked: str) -> None:
    place = tmp_path_factory.mktemp("run") / "ran"
    found = explain([f"uv run scripts/train.py pi05_libero --exp-name={asked.format(place)}"], None)
    assert not place.exists()
    assert any("not run" in text and "touch" in text for text in found.cut)
    assert "touch" in str(found.options["exp-name"])


def test_a_quoted_sign_is_a_value() -> None:
    given = read(["pi05_aloha --exp-name 'a|b; c' --data.default-prompt \"don't > stop & train\""]).given
    assert given == {"exp-name": "a|b; c", "data.default-prompt": "don't > stop & train"}


@pytest.mark.parametrize(
    ("line", "processes"),
    [
        (TORCH, 6),
        (TORCH.replace("6", "gpu"), None),
        (TORCH.replace("nnodes=1", "nnodes=2"), 12),
        (TORCH.replace("uv run torchrun", "python -m torch.distributed.run"), 6),
        (TORCH.replace("--nproc_per_node=6", "--nproc-per-node 6"), 6),
        (
            TORCH.replace(
                "torchrun --standalone --nnodes=1 --nproc_per_node=6", "accelerate launch --num_processes 6"
            ),
            6,
        ),
        (TORCH.replace("torchrun --standalone --nnodes=1 --nproc_per_node=6", "accelerate launch"), None),
        ("python scripts/train_pytorch.py pi05_libero --exp_name x", 1),
        (f"CUDA_VISIBLE_DEVICES=0,1 nohup {TORCH} > log 2>&1 &", 6),
    ],
)
def test_the_pytorch_trainer_is_another_trainer(line: str, processes: int | None) -> None:
    for found in both(line):
        assert found.trainer == "openpi-pytorch"
        assert checks(found)[0] == "another-trainer"
        nothing = (
            found.trained,
            found.parameters_total,
            found.parameters_trained,
            found.param_norm,
            found.device_bytes,
            found.fits,
            found.plan,
            found.recipe,
        )
        assert nothing == (None,) * 8
        assert {
            "trained",
            "parameters_trained",
            "param_norm",
            "device_bytes",
            "fits",
            "recipe",
        } <= found.unknown.keys()
        assert "the same" not in found.meant
        texts = " ".join(found.deviations)
        for said in ("no average", "no FSDP", "bfloat16", "--pytorch-weight-path"):
            assert said in texts
        assert whose([line]).processes == processes
        openpi_view(found)


def test_what_the_pytorch_trainer_ignores_is_said() -> None:
    found = explain([TORCH], None)
    assert "252 in all" in next(
        finding.got for finding in found.findings if finding.check == "batch-not-divisible"
    )
    assert "weights-placeholder" in checks(found)
    lora = explain(
        ["python scripts/train_pytorch.py pi05_aloha --exp_name x --model.paligemma-variant gemma_2b_lora"],
        None,
    )
    assert {"random-weights", "lora-trains-everything"} <= set(checks(lora))
    assert "pytorch-cannot" in checks(
        explain(["python scripts/train_pytorch.py pi0_fast_libero --exp_name x"], None)
    )
    ready = explain(
        [
            "python scripts/train_pytorch.py pi05_libero --exp_name x --pytorch-weight-path /w"
            " --pytorch-training-precision float32"
        ],
        None,
    )
    assert checks(ready) == ["another-trainer"]
    assert "float32" in ready.deviations[0]


def test_the_fix_of_the_pytorch_trainer_is_the_jax_command() -> None:
    fix = explain([TORCH], None).findings[0].fix
    found = explain(shlex.split(fix)[3:], None)
    assert (found.trainer, found.options) == ("openpi", {"exp-name": "x"})


@pytest.mark.parametrize("program", ["scripts/train.py", "my_train.py"])
def test_nothing_is_known_of_a_program_that_a_launcher_starts(program: str) -> None:
    found = explain([f"torchrun --nproc_per_node=4 {program} pi05_libero --exp-name x"], None)
    assert checks(found)[0] == ("launcher-starts-jax" if program == "scripts/train.py" else "another-trainer")
    assert (found.device_bytes, found.param_norm, found.recipe, found.meant) == (None, None, None, "")


def test_a_script_of_ones_own_is_said_to_be_one() -> None:
    found = explain(["python my_train.py pi05_libero --exp-name x"], None)
    assert checks(found, "warning")[0] == "another-script"
    assert "the same" not in found.meant


@pytest.mark.parametrize(
    "line",
    [
        "python scripts/gr00t_finetune.py --dataset-path x",
        "python finetune.py conf.yaml",
        "torchrun --nproc_per_node=4 vla-scripts/finetune.py --vla_path x",
        "python my_train.py",
    ],
)
def test_a_program_of_another_project_is_another_trainer(line: str) -> None:
    for found in both(line):
        assert (found.trainer, found.config, found.model) == ("other", "", "unknown")
        assert checks(found) == ["another-trainer"]
        assert next(word for word in line.split() if word.endswith(".py")) in found.findings[0].got
        assert (found.device_bytes, found.param_norm, found.recipe, found.meant) == (None, None, None, "")
        openpi_view(found)
    done = CliRunner().invoke(app, ["import", "openpi", line, "--gpu", "a100_80"])
    assert (done.exit_code, "openpi scripts" in done.stdout) == (1, False)


def test_what_lerobots_file_says_is_not_called_a_default() -> None:
    line = "lerobot_train.py --config_path=out/checkpoints/last/train_config.json --resume=true"
    found = explain([line], None)
    said = " ".join(found.deviations)
    assert said.count("as the file says") == 4
    assert "default" not in said
    assert "no weights" not in said
    assert "--config_path" in found.findings[0].got
    named = " ".join(explain([f"{line} --steps=5 --batch_size=3"], None).deviations)
    assert ("5 steps" in named, "batch 3" in named) == (True, True)


@pytest.mark.parametrize(
    ("line", "batch"),
    [
        (f"lerobot-train {LEROBOT}", "batch 32"),
        (f"python -m lerobot.scripts.train {LEROBOT}", "batch 32"),
        (f"python lerobot/scripts/train.py {LEROBOT}", "batch 32"),
        (f"uv run python src/lerobot/scripts/lerobot_train.py {LEROBOT}", "batch 32"),
        (
            f"accelerate launch --multi_gpu --num_processes=2 $(which lerobot-train) {LEROBOT}",
            "32 in each of 2 processes, 64 in all",
        ),
        (f"accelerate launch $(which lerobot-train) {LEROBOT}", "does not say how many"),
        (
            f"accelerate launch --num_processes=4 -m lerobot.scripts.lerobot_train {LEROBOT} 2>&1 | tee x",
            "128 in all",
        ),
    ],
)
def test_lerobots_command_is_recognized(line: str, batch: str) -> None:
    for found in both(line):
        assert (found.trainer, found.config, found.model) == ("lerobot", "pi05", "π0.5")
        assert checks(found) == ["another-trainer"]
        assert any(batch in text for text in found.deviations)
        assert "dataset me/ds" in found.deviations
        assert (found.device_bytes, found.param_norm, found.recipe, found.meant) == (None, None, None, "")
        nearest = shlex.split(found.findings[0].fix)
        assert nearest[:6] == ["harness", "train", "--recipe", "pi05_libero", "--steps", "3000"]
        assert "data.dataset=me/ds" in nearest
        openpi_view(found)


def test_another_policy_of_lerobots_is_not_trained_here() -> None:
    found = explain(["lerobot-train --policy.type=act --dataset.repo_id=me/ds"], None)
    assert (found.model, found.findings[0].check) == ("act", "another-trainer")
    assert "π0.5 alone" in found.findings[0].need
    named = explain(["lerobot-train --policy.path=lerobot/pi05_base --peft.method_type=LORA"], None)
    assert "config.json" in named.findings[0].got
    assert "pi05_libero_lora" in named.findings[0].fix
    assert explain(["lerobot-train --config_path=me/run"], None).model == "unknown"


@pytest.mark.parametrize(
    ("program", "instead"),
    [
        ("scripts/compute_norm_stats.py --config-name x", "harness stats"),
        ("lerobot-record --x=1", "harness import openpi"),
        ("scripts/serve_policy.py policy:checkpoint", "harness serve"),
    ],
)
def test_what_trains_nothing_is_said_to(program: str, instead: str) -> None:
    with pytest.raises(HarnessError) as caught:
        whose([f"uv run {program}"])
    assert (caught.value.code, caught.value.fix.startswith(instead)) == ("not-a-trainer", True)


@pytest.mark.parametrize(
    "line",
    [
        "pi05_libero --exp-name 'x",
        'pi05_libero --exp-name "x',
        "pi05_libero --exp-name $(x",
        "pi05_libero --exp-name `x",
    ],
)
def test_what_is_not_closed_is_refused(line: str) -> None:
    with pytest.raises(HarnessError) as caught:
        read([line])
    assert caught.value.code == "openpi-option-invalid"


def test_names_are_listed_on_demand_and_not_in_an_error() -> None:
    for name in ("foo", "lerobot", "pi05"):
        with pytest.raises(HarnessError) as caught:
            read([name])
        assert "harness import openpi --list" in str(caught.value.need)
        assert sum(config in str(caught.value) for config in openpi_configs.names()) <= 6
    done = CliRunner().invoke(app, ["import", "openpi", "--list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == openpi_configs.names()


def test_bytes_that_are_no_text_are_answered() -> None:
    found = explain(["pi05_libero --exp-name=a\udce9\x1b]0;x\x07"], None)
    assert found.model_dump_json()
    assert "\x1b" not in str(found.options["exp-name"])


@pytest.mark.parametrize(
    "piece",
    [
        " ",
        "$",
        "(",
        "`x`",
        "\\",
        "'a'",
        "$(",
        "<a",
        "a@",
        "bash -c 'train ",
        '"',
        "x=",
        "--a ",
        "> ",
        "; ",
        "\n",
    ],
)
def test_the_longest_line_is_read_in_seconds(piece: str) -> None:
    line = (piece * LONGEST)[:LONGEST]
    start = time.monotonic()
    for attempt in (line, f"pi05_libero {line}"[:LONGEST]):
        with contextlib.suppress(HarnessError):
            explain([attempt], None)
    assert time.monotonic() - start < 20
    with pytest.raises(HarnessError):
        simple_commands(line + "x y" * 10)
