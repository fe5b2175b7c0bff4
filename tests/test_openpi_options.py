"""Tests that openpi's command line is read as its own parser reads it.

Each case was tried on openpi itself (commit 15a9616, tyro 1.0).
"""

from __future__ import annotations

import shlex

import pytest

from harness.errors import HarnessError
from harness.openpi import configs as openpi_configs
from harness.openpi.options import read, said


@pytest.mark.parametrize(
    "line",
    [
        "pi05_libero --exp-name x --batch-size 8",
        "pi05_libero --exp_name=x --batch_size=8",
        "pi05_libero --batch-size 16 --exp-name x --batch-size 8",
        "uv run scripts/train.py pi05_libero --exp-name=x --batch-size=8",
        (
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 uv run --frozen scripts/train.py pi05_libero --exp-name x"
            " --batch-size 8"
        ),
        "python /home/me/openpi/scripts/train.py pi05_libero --exp-name x \\\n --batch-size 8",
    ],
)
def test_ways_to_say_the_same(line: str) -> None:
    for words in (shlex.split(line), [line]):
        command = read(words)
        assert command.name == "pi05_libero"
        assert command.given == {"exp-name": "x", "batch-size": 8}
        assert command.effective["num-train-steps"] == 30_000


def test_variables_in_front_are_kept() -> None:
    command = read(["XLA_PYTHON_CLIENT_ALLOCATOR=platform", "uv", "run", "scripts/train.py", "pi05_libero"])
    assert command.environment == {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"}


@pytest.mark.parametrize(
    ("words", "option", "value"),
    [
        ("--ema-decay None", "ema-decay", None),
        ("--ema-decay 0.99", "ema-decay", 0.99),
        ("--lr-schedule.peak-lr 1e-4", "lr-schedule.peak-lr", 1e-4),
        ("--overwrite --overwrite", "overwrite", True),
        ("--no-wandb-enabled", "wandb-enabled", False),
        ("--model.no-pi05", "model.pi05", False),
        ("--data.extra-delta-transform", "data.extra-delta-transform", True),
        ("--keep-period None", "keep-period", None),
        ("--seed -8", "seed", -8),
        ("--model.paligemma_variant=gemma_2b_lora", "model.paligemma-variant", "gemma_2b_lora"),
    ],
)
def test_values(words: str, option: str, value: object) -> None:
    given = read(["pi05_libero", *words.split()]).given
    assert given == {option: value}
    assert type(given[option]) is type(value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("pi05_aloha --data.action-sequence-keys action b --seed 1", ["action", "b"]),
        ("pi05_aloha --data.action_sequence_keys=action", ["action"]),
        ("pi05_aloha --data.action-sequence-keys --overwrite", []),
        ("pi05_aloha --policy-metadata.reset-pose 0 -1.5 1", [0, -1.5, 1]),
        ("pi05_full_droid_finetune --data.datasets.0.weight 0.5", 0.5),
        ("pi05_droid_jointpos_polaris --data.datasets.1.filter-dict-path None", None),
        ("pi05_full_droid_finetune --data.action-space JOINT_VELOCITY", "JOINT_VELOCITY"),
        ("pi05_full_droid_finetune --data.action-space None", None),
        ("pi05_libero --pytorch-weight-path ''", ""),
        ("pi05_libero --optimizer.b2 -inf", float("-inf")),
        ("pi05_libero --project-name=-x", "-x"),
    ],
)
def test_values_of_several_words_and_of_members(line: str, value: object) -> None:
    for words in ([line], shlex.split(line)):
        command = read(words)
        assert next(iter(command.given.values())) == value
        again = read(shlex.split(said(command.name, command.given)))
        assert again.given == command.given


@pytest.mark.parametrize(
    ("line", "code", "fix"),
    [
        (
            "pi05_full_droid_finetune --data.action-space joint_velocity",
            "openpi-option-invalid",
            "--data.action-space JOINT_VELOCITY",
        ),
        (
            "pi05_libero --model.pytorch-compile-mode max_autotune",
            "openpi-option-invalid",
            "--model.pytorch-compile-mode max-autotune",
        ),
        (
            "pi05_aloha --policy-metadata.reset-pose x",
            "openpi-option-invalid",
            "--policy-metadata.reset-pose 0 1",
        ),
        ("pi05_libero --policy-metadata None", "openpi-option-unknown", "leave it out"),
    ],
)
def test_values_that_openpi_refuses(line: str, code: str, fix: str) -> None:
    with pytest.raises(HarnessError) as caught:
        read([line])
    assert (caught.value.code, caught.value.fix) == (code, fix)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--batch-siz 8", "openpi-option-unknown"),
        ("--freeze-filter lora", "openpi-option-unknown"),
        ("--data.base-config.prompt-from-task", "openpi-option-unknown"),
        ("--paligemma-variant gemma_2b_lora", "openpi-option-unknown"),
        ("--no-batch-size 8", "openpi-option-unknown"),
        ("--batch-size 8.0", "openpi-option-invalid"),
        ("--batch-size", "openpi-option-invalid"),
        ("--batch-size -8", "openpi-option-invalid"),
        ("--fsdp-devices 0", "openpi-option-invalid"),
        ("--batch-size --overwrite", "openpi-option-invalid"),
        ("--exp-name -x", "openpi-option-invalid"),
        ("--ema-decay none", "openpi-option-invalid"),
        ("--wandb-enabled False", "openpi-option-invalid"),
        ("--overwrite=True", "openpi-option-invalid"),
        ("--model.paligemma_variant=gemma_2b_lor", "openpi-option-invalid"),
        ("extra", "openpi-option-invalid"),
        ("--resume --overwrite", "options-contradict"),
    ],
)
def test_what_openpi_refuses_is_refused(words: str, code: str) -> None:
    with pytest.raises(HarnessError) as caught:
        read(["pi05_libero", *words.split()])
    assert caught.value.code == code


def test_the_nearest_option_is_the_fix() -> None:
    for written, meant in (
        ("--batch-siz", "--batch-size"),
        ("--paligemma-variant", "--model.paligemma-variant"),
        ("--peak-lr", "--lr-schedule.peak-lr"),
    ):
        with pytest.raises(HarnessError) as caught:
            read(["pi05_libero", written, "1"])
        assert caught.value.fix == meant


def test_the_nearest_value_is_the_fix() -> None:
    with pytest.raises(HarnessError) as caught:
        read(["pi05_libero", "--model.paligemma-variant", "gemma_2b_lor"])
    assert caught.value.fix == "--model.paligemma-variant gemma_2b_lora"


@pytest.mark.parametrize("name", ["pi05-libero", "pi05_liberoo", "PI05_LIBERO", "libero_pi05"])
def test_a_configuration_that_is_not_there(name: str) -> None:
    with pytest.raises(HarnessError) as caught:
        read([name, "--exp-name", "x"])
    assert caught.value.code == "openpi-config-unknown"
    assert "libero" in caught.value.fix


@pytest.mark.parametrize(
    "words",
    [[], ["--exp-name", "x", "pi05_libero"], ["uv", "run", "train.py"], ['pi05_libero --exp-name "x']],
)
def test_a_line_without_a_configuration(words: list[str]) -> None:
    with pytest.raises(HarnessError) as caught:
        read(words)
    assert caught.value.code in ("openpi-config-unknown", "openpi-option-invalid")


def test_a_configuration_that_overwrites_by_itself_cannot_resume() -> None:
    with pytest.raises(HarnessError) as caught:
        read(["debug_pi05", "--resume"])
    assert caught.value.fix == "--no-overwrite"
    assert read(["debug_pi05", "--resume", "--no-overwrite"]).effective["overwrite"] is False


def test_every_option_of_every_configuration_has_a_kind() -> None:
    assert len(openpi_configs.names()) == 31
    for name in openpi_configs.names():
        for option in openpi_configs.find(name).defaults:
            assert openpi_configs.kind_of(option).type


def test_who_freezes() -> None:
    freezing = [name for name in openpi_configs.names() if openpi_configs.find(name).freezes]
    assert freezing == ["pi0_libero_low_mem_finetune", "pi0_fast_libero_low_mem_finetune"]
