"""Tests logs whose lines have the format strings of real trainers."""

from __future__ import annotations

import json

import pytest

from harness.analyse.curve import analyse
from harness.artifacts import Curve

COUNT = 60
LOSSES = [2.4 * 0.97**i for i in range(COUNT)]
STEPS = [10 * (i + 1) for i in range(COUNT)]


def look(text: str) -> Curve:
    return analyse("-", stdin=text.encode())


def check(curve: Curve, steps: list[int], held_out: list[int] | None) -> None:
    """The training losses are LOSSES at `steps`; the held-out ones are larger by 1, at the steps given."""
    assert curve.series.step == steps
    assert curve.series.loss == pytest.approx(LOSSES, abs=1e-3)
    losses = dict(zip(steps, LOSSES, strict=True))
    assert (curve.held_out.step if curve.held_out else None) == held_out
    if curve.held_out:
        assert curve.held_out.loss == pytest.approx([losses[s] + 1 for s in held_out or []], abs=1e-3)
    assert not {finding.code for finding in curve.findings} & {
        "mixed-runs",
        "restarted",
        "steps-out-of-order",
    }


# (a training line, a held-out line for every tenth, the steps between lines): s is the step, e the epoch, k
# the step within it, j the line, v the loss, h the held-out loss.
LOGS = {
    "torchtitan": (
        "step: {s:2}  loss: {v:8.5f}  grad_norm:  1.2000  memory: 5.25GiB(12.30%)  tps: 12,345\n",
        "validate step: {s:2}  loss: {h:7.4f}  memory: 5.20GiB(12.30%)  tps: 9,876\n",
        10,
    ),
    "two words": ("train step: {s}, loss: {v:.4f}\n", "test step: {s}, loss: {h:.4f}\n", 10),
    "evaluating": ("INFO step {s} loss {v:.4f}\n", "INFO evaluating: step {s} loss {h:.4f}\n", 10),
    "dev": ("INFO step {s} loss {v:.4f}\n", "INFO dev step {s} loss {h:.4f}\n", 10),
    "fairseq": (
        '| INFO | train_inner | {{"epoch": {e}, "loss": "{v:.3f}", "num_updates": "{s}", "lr": "1e-4"}}\n',
        '| INFO | valid | {{"epoch": {e}, "valid_loss": "{h:.3f}", "valid_num_updates": "{s}"}}\n'
        '| INFO | train | {{"epoch": {e}, "train_loss": "9.9", "train_num_updates": "{s}"}}\n',
        10,
    ),
    "fairseq simple": (
        "| INFO | train_inner | epoch {e:03d}: {k} / 100 loss={v:.3f}, num_updates={s}, lr=1e-4\n",
        "| INFO | valid | epoch {e:03d} | valid on 'valid' subset | loss {h:.3f} | num_updates {s}\n"
        "| INFO | train | epoch {e:03d} | loss 9.9 | num_updates {s} | lr 1e-4\n",
        10,
    ),
    "mmengine": (
        "INFO - Epoch(train)  [{e}][{k:4d}/100]  lr: 1e-03  time: 0.5  loss: {v:.4f}  loss_cls: 0.5\n",
        "INFO - Epoch(val) [{e}][7/7]    coco/bbox_mAP: 0.3  loss: {h:.4f}  time: 0.1\n",
        10,
    ),
    "mmcv": (
        '{{"mode": "train", "epoch": {e}, "iter": {k}, "lr": 0.001, "loss": {v:.5f}}}\n',
        '{{"mode": "val", "epoch": {e}, "iter": 7, "lr": 0.001, "loss": {h:.5f}}}\n',
        10,
    ),
    "minGPT": (
        "[RANK0] Epoch {e} | Iter {k} | Train Loss {v:.5f}\n",
        "[RANK0] Epoch {e} | Iter 0 | Eval Loss {h:.5f}\n",
        10,
    ),
    "litgpt": (
        "Epoch {e} | iter {s} step {s} | loss train: {v:.3f}, val: n/a | iter time: 100.00 ms (step)\n",
        "",
        10,
    ),
    "OpenVLA": (
        '{{"VLA Train/Epoch": {e}, "VLA Train/L1 Loss": 0.3, "VLA Train/Loss": {v:.5f},'
        ' "VLA Train/Loss (Raw)": 9.0, "VLA Train/Step": {s}}}\n',
        "",
        10,
    ),
    "Prismatic": (
        '{{"Finetune/Loss": {v:.5f}, "Finetune/Loss (Raw)": 9.0, "Finetune/Step": {s}}}\n',
        "",
        10,
    ),
    "Stable-Baselines3": (
        '{{"train/loss": {v:.5f}, "train/value_loss": 9.0, "time/total_timesteps": {s}}}\n',
        "",
        10,
    ),
    "PyTorch's tutorial": (
        '{{"step": {s}, "Loss/train": {v:.5f}}}\n',
        '{{"step": {s}, "Loss/test": {h:.5f}}}\n',
        10,
    ),
    "robomimic": (
        'Train Epoch {j}\n{{\n    "Log_Likelihood": -1.0,\n    "Loss": {v:.5f},\n    "Time": 0.1\n}}\n',
        'Validation Epoch {j}\n{{\n    "Log_Likelihood": -1.0,\n    "Loss": {h:.5f},\n    "Time": 0.1\n}}\n',
        1,
    ),
    "DETR": ('{{"train_lr": 1e-4, "train_loss": {v:.5f}, "test_class_error": 80.0, "epoch": {j}}}\n', "", 1),
    "OpenVLA's two": (
        '{{"_step": {s}, "VLA Train/Loss": {v:.5f}, "VLA Train/L1 Loss": 0.3}}\n',
        '{{"_step": {s}, "VLA Val/Loss": {h:.5f}, "VLA Val/L1 Loss": 0.3}}\n',
        10,
    ),
    "timm": (
        "Train: {e} [ {k:3d}/100 ( 10%)]  Loss: {v:.5f} (9.9)  Time: 1.001s,  256.1/s  LR: 1.000e-05\n",
        "Test: [   0/48]  Time: 0.5 (0.5)  Loss:  9.9 (9.9)  Acc@1:  1.0 ( 1.0)\n"
        "Test: [  48/48]  Time: 0.5 (0.5)  Loss:  9.9 ({h:7.4f})  Acc@1:  1.0 ( 1.0)\n",
        10,
    ),
    "llm.c": ("step {s:4d}/600 | loss {v:.6f} (+nanz)| norm 15.3 | lr 1e-06\n", "val loss {h:.6f}\n", 10),
    "a bar of a validation": (
        "\rEpoch {e}:  7%|#   | {k}/100 [00:10<01:00,  1.5it/s, loss={v:.5f}]",
        "\nVal:  50%|#| 5/10 [00:01<00:00, 9it/s, loss=9.9]"
        "\rVal: 100%|#| 10/10 [00:01<00:00, 9it/s, loss={h:.5f}]\n",
        10,
    ),
    "pprint": ("{{'grad_norm': 1.0,\n 'loss': {v:.5f},\n 'step': {s}}}\n", "", 10),
    "JSON over lines": (
        '{{\n  "val_loss": {h:.5f},\n  "loss": {v:.5f},\n  "step": {s}\n}}\n',
        "",
        10,
    ),
    "rich": (
        "[21:51:55] INFO     Step {s}: grad_norm=1.2345,          train.py:269\n"
        "                    loss={v:.5f}, lr=1e-4                            \n",
        "",
        10,
    ),
    "Stable-Baselines3's console": (
        "------------------------\n| time/           |      |\n|    total_timesteps | {s} |\n"
        "| train/          |      |\n|    loss         | {v:.5f} |\n|    value_loss   | 9.9  |\n"
        "------------------------\n",
        "",
        10,
    ),
    "parts of a loss": ("step {s} l1 loss: 0.3 kl loss: 9.9 loss: {v:.5f}\n", "", 10),
    "other counts": (
        "max_step: 600, 0.5 s/step: 9, ms per step 500.1, step: {s}, loss_scale=65536.0, mse_loss: {v:.5f}\n",
        "",
        10,
    ),
    "GCN": ("Epoch: {j:04d} (0.01s) loss_train: {v:.4f} acc_train: 0.1\n", "", 1),
    "VAE": ("====> Epoch: {j} Average loss: {v:.4f}\n", "====> Test set loss: 9.9\n", 1),
}


@pytest.mark.parametrize("name", LOGS)
def test_each_loss_of_a_trainer_s_log_is_the_one_it_is(name: str) -> None:
    trained, held, every = LOGS[name]
    text, held_out = "", []
    for i, loss in enumerate(LOSSES):
        values = {
            "s": STEPS[i],
            "e": 1 + i // 10,
            "k": 10 + 10 * (i % 10),
            "j": i + 1,
            "v": loss,
            "h": loss + 1,
        }
        text += trained.format(**values)
        if i % 10 == 9:
            text += held.format(**values)
            held_out.append(every * (i + 1))
    if name == "GCN":
        text += "Test set results: loss 9.9000 accuracy 0.8000\n"
    if "{h" in trained:
        held_out = [every * (i + 1) for i in range(COUNT)]
    elif "{h" not in held:
        held_out = []
    check(look(text), [every * (i + 1) for i in range(COUNT)], held_out or None)


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_the_line_of_a_fast_run_has_the_step_of_the_bar_that_is_drawn_for_it(lag: int) -> None:
    """A bar drawn every tenth of a second is behind. Below the line it is drawn again, at its old rate."""
    text = ""
    for s, loss in zip(STEPS, LOSSES, strict=True):
        for n in (s - 6, s - lag):
            text += f"\r {n / 6:.0f}%|#   | {n}/600 [00:01<00:06, {20 + n / 100:.2f}it/s]"
        text += "\r" + " " * 48 + f"\r{{'loss': '{loss:.4f}', 'epoch': '{s / 150:.4g}'}}\n"
        text += f"\n\r {s / 6:.0f}%|#   | {s}/600 [00:01<00:06, {20 + n / 100:.2f}it/s]"
    check(look(text + "\n"), STEPS, None)


def test_lightning_s_bar_goes_on_over_the_epochs_and_repeats_its_held_out_loss() -> None:
    """The bar of a finished epoch is set back to 0 before it gets the next one's name."""
    text, old = "", ""
    for i, loss in enumerate(LOSSES):
        e, k = divmod(i, 10)
        if k == 0 and e:
            text += f"\rEpoch {e - 1}:   0%|    | 0/10 [00:00<?, ?it/s, {old}]"
            text += f"\rEpoch {e}:   0%|    | 0/10 [00:00<?, ?it/s, {old}]"
        held = f", val_loss={LOSSES[10 * e - 1] + 1:.4f}" if e else ""
        old = f"v_num=0, train_loss={loss:.4f}{held}"
        text += f"\rEpoch {e}:  10%|#   | {k + 1}/10 [00:01<00:06, 20.00it/s, {old}]"
        if k == 9:
            old = f"v_num=0, train_loss={loss:.4f}, val_loss={loss + 1:.4f}"
            text += f"\rEpoch {e}: 100%|####| 10/10 [00:01<00:00, 20.00it/s, {old}]"
    curve = look(text + "\n")
    check(curve, list(range(1, COUNT + 1)), list(range(10, COUNT + 1, 10)))


def test_skorch_s_table_has_a_rule_below_its_names() -> None:
    rows = "".join(f"  {i + 1:5d}  {v:12.4f}  {v + 1:12.4f}  0.05\n" for i, v in enumerate(LOSSES))
    names, rule = (
        "  epoch    train_loss    valid_loss     dur\n",
        "-------  ------------  ------------  ------\n",
    )
    epochs = list(range(1, COUNT + 1))
    check(look(names + rule + rows), epochs, epochs)


def test_stable_baselines3_s_table_counts_its_own_steps() -> None:
    rows = "".join(f"{s},20.4,,{v:.5f}\n" for s, v in zip(STEPS, LOSSES, strict=True))
    check(look("time/total_timesteps,rollout/ep_len_mean,train/n,train/loss\n" + rows), STEPS, None)


@pytest.mark.parametrize(
    "form",
    [
        " iteration {s:8d}/  600 | learning rate: 2.0E-04 | lm loss: {v:.5f} | grad norm: 1.234 |\n",
        "step={s} loss={v:.5f} lr=[0.0002, 0.9] grad_norm=1.234\n",
        '{{"step": {s}, "loss": {v:.5f}, "lr-AdamW": 0.0002, "train/grad_norm": 1.234}}\n',
        '{{"_step": {s}, "training/loss": {v:.5f}, "training/lr": 0.0002, "training/grad_norm": 1.234}}\n',
    ],
)
def test_rates_by_other_names(form: str) -> None:
    curve = look("".join(form.format(s=s, v=v) for s, v in zip(STEPS, LOSSES, strict=True)))
    check(curve, STEPS, None)
    assert (curve.series.learning_rate[0], curve.series.grad_norm[0]) == (2e-4, 1.234)


@pytest.mark.parametrize("column", ["split", "phase", "mode"])
def test_a_table_whose_rows_say_whose_loss_they_hold(column: str) -> None:
    rows = "".join(f"{s},train,{v:.5f}\n{s},val,{v + 1:.5f}\n" for s, v in zip(STEPS, LOSSES, strict=True))
    check(look(f"step,{column},loss\n{rows}"), STEPS, STEPS)


def test_a_loss_that_a_table_does_not_have_yet_is_not_lost() -> None:
    rows = "".join(f"| {s} | {v:.5f} | {v + 1:.5f} |\n" for s, v in zip(STEPS, LOSSES, strict=True))
    curve = look(f"| Step | Training Loss | Validation Loss |\n|---|---|---|\n| 5 | No log | 3.5 |\n{rows}")
    assert (curve.points, curve.verdict) == (COUNT, "learning")
    assert curve.held_out is not None
    assert curve.held_out.points == COUNT + 1


def test_fastai_s_table_has_clocks() -> None:
    rows = "".join(f"{i + 1:<9d}  {v:.5f}    {v + 1:.5f}    0.1   00:10     \n" for i, v in enumerate(LOSSES))
    epochs = list(range(1, COUNT + 1))
    check(look(f"epoch     train_loss  valid_loss  accuracy  time    \n{rows}"), epochs, epochs)


def test_the_only_loss_of_a_table_is_its_loss() -> None:
    rows = "".join(f"{s},{v:.5f},{v + 1:.5f}\n" for s, v in zip(STEPS, LOSSES, strict=True))
    check(look(f'"Step","run - train/l1_loss","run - val/l1_loss"\n{rows}'), STEPS, STEPS)


def test_a_whole_epoch_of_transformers_is_still_counted_by_its_bar() -> None:
    text = "".join(
        f" 10%|#  | {s}/600 [00:10<50:00,  1.00it/s]\n" + json.dumps({"loss": v, "epoch": i}) + "\n"
        for i, (s, v) in enumerate(zip(STEPS, LOSSES, strict=True))
    )
    check(look(text), STEPS, None)
