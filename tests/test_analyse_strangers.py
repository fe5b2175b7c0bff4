"""Tests logs of trainers that nobody here runs, each with its steps, its values and the verdict."""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import pytest

from harness.analyse.curve import analyse
from harness.analyse.events import spikes
from harness.analyse.level import settle
from harness.artifacts import Curve

COUNT = 60
STEPS = [100 * (i + 1) for i in range(COUNT)]
LOSSES = [0.1 + 0.9 * math.exp(-i / 15) for i in range(COUNT)]


def look(text: str | bytes) -> Curve:
    return analyse("-", stdin=text if isinstance(text, bytes) else text.encode())


def lines(form: str) -> str:
    return "".join(form.format(s=s, v=v, k=s / 1000) + "\n" for s, v in zip(STEPS, LOSSES, strict=True))


def check(curve: Curve, *, last: int = STEPS[-1], held_out: int | None = None) -> None:
    assert (curve.points, curve.last_step, curve.verdict) == (COUNT, last, "learning")
    assert curve.series.loss[-1] == pytest.approx(LOSSES[-1], abs=1e-3)
    assert (curve.held_out.points if curve.held_out else None) == held_out
    codes = {finding.code for finding in curve.findings}
    assert not codes & {"lines-unreadable", "steps-out-of-order", "mixed-runs", "restarted", "spikes"}


@pytest.mark.parametrize(
    "form",
    [
        "iter {s}: loss {v:.4f}, time 250.11ms",
        "iter: {s}, loss: {v:.4f}",
        "Iter {s}/6000 loss: {v:.4f}",
        " iteration {s:8d}/    6000 | elapsed time per iteration (ms): 500.2 | lm loss: {v:.6E}",
        "2024/01/02 10:00:00 - INFO - Iter(train) [{s}/6000]  lr: 1e-04  time: 0.5  loss: {v:.4f}",
        "eta: 1:00:00  iter: {s}  total_loss: {v:.4f}  loss_cls: 0.5  lr: 0.001",
        "steps: {s} loss: {v:.4f} iter time (s): 0.512",
        '{{"epoch": 1, "update": 0.1, "loss": "{v:.4f}", "num_updates": "{s}", "lr": "1e-4"}}',
        "update {s} | loss {v:.4f}",
        "Step #{s} loss: {v:.4f}",
        "STEP {s} LOSS {v:.4f}",
        "step {k:.1f}k | loss {v:.4f}",
        "Loss at step {s}: {v:.4f}",
        "[{s}] grad_norm=1.2, loss={v:.4f}",
        "[{s}/6000] loss: {v:.4f}",
        "step={s} total_loss={v:.4f}",
        "Step {s} loss_total={v:.4f}",
        "Step {s}: mse_loss={v:.4f}",
        "step {s} loss=tensor({v:.4f}, device='cuda:0', grad_fn=<MeanBackward0>)",
        "{{'step': {s}, 'loss': np.float32({v:.4f})}}",
        "step {s}: loss=Array({v:.4f}, dtype=float32), grad_norm=Array(1.2, dtype=float32)",
        "1|{s}|Loss: {v:.4f}:  7%|██| {s}/6000 [01:40<50:00,  1.00it/s]",
        "Global Step {s:06d} =>> LR :: 0.00002 -- Loss :: {v:.4f}:  7%|██| {s}/6000 [01:40<50:00,  1.00it/s]",
        "\rsteps:  7%|██| {s}/6000 [01:40<50:00,  1.00it/s, avr_loss={v:.4f}]",
        "step {s}, loss => {v:.4f}",
        '{{"current_steps": {s}, "total_steps": 6000, "loss": {v:.4f}}}',
        "{{'loss': {v:.4f}, 'epoch': 0.5, 'global_step/max_steps': '{s}/6000'}}",
        "Schritt {s}: Verlust {v:.4f}",
        "étape {s}, perte {v:.4f}",
        "训练步数：{s}，损失：{v:.4f}",
        "ステップ {s} 損失 {v:.4f}",
    ],
)
def test_a_line_of_another_trainer(form: str) -> None:
    check(look(lines(form)))


def test_a_loss_that_is_lost_in_its_wrapper_is_seen() -> None:
    text = lines("step {s} loss=tensor({v:.4f})").replace("tensor(0.1", "tensor(nan) or (0.1")
    assert look(text).verdict == "diverged"


@pytest.mark.parametrize(
    "form",
    [
        "step {s} loss[train]={v:.4f} loss[val]=5.0",
        "Step {s} Loss (train): {v:.4f} Loss (test): 5.0",
        "step {s} train.loss={v:.4f} val.loss=5.0",
        "step {s} loss_train={v:.4f} loss_val=5.0",
        "iteration {s}/ 6000 | lm loss: {v:.6E} |\n validation loss at iteration {s} on validation set"
        " | lm loss value: 5.000000E+00 | lm loss PPL: 1.484132E+02 |",
        "step {s} loss {v:.4f}\n[test] step {s} loss 5.0",
        "step {s}: train loss 4.0, val loss 5.0\niter {s}: loss {v:.4f}, time 250.11ms, mfu 30%",
    ],
)
def test_two_losses_that_are_told_apart(form: str) -> None:
    check(look(lines(form)), held_out=COUNT)


def test_a_remark_about_a_loss_is_no_point() -> None:
    remarks = "New best loss: 0.05 at step {s}\nLowest train loss 0.05 (step {s})\n"
    check(look(lines("step {s} loss {v:.4f}\n" + remarks) + "Done at step 6000, final loss: 0.9\n"))


def test_a_program_that_is_called_test_trains() -> None:
    check(look(lines("[test] step {s} loss {v:.4f}")))


def test_a_held_out_loss_that_comes_later_is_read() -> None:
    """The form of the lines before it would match its line, too."""
    text = "".join(
        f"step {s} loss {v:.4f}" + (" val_loss 5.0\n" if i % 10 == 9 else "\n")
        for i, (s, v) in enumerate(zip(STEPS, LOSSES, strict=True))
    )
    # The last line is longer than those before it, and whole.
    check(look(text[:-1]), held_out=6)


@pytest.mark.parametrize("cut", [1, 3, 6, 9])
def test_a_last_line_in_another_spelling(cut: int) -> None:
    points = look(lines("iter {s}, loss: {v:.4f}")[:-cut]).points
    assert points == (COUNT if cut == 1 else COUNT - 1)


@pytest.mark.parametrize("word", ["val", "valid", "test", "Validation"])
def test_a_second_loss_of_two_words_is_held_out(word: str) -> None:
    check(look(lines(f"step {{s}}: train loss {{v:.4f}}, {word} loss 5.0")), held_out=COUNT)


@pytest.mark.parametrize(
    ("form", "first", "last"),
    [
        ("Epoch [{e}/6], Step [{j}/1000], Loss: {v:.4f}\n", 50, 5950),
        ("Epoch: {e}, Step: {j}, Loss: {v:.4f}\n", 50, 5950),
        ("Epoch: [{e}][{j}/1000]\tTime 0.5 (0.6)\tLoss {v:.4e} ({v:.4e})\n", 0, 5900),
        ("INFO - Epoch(train)  [{e}][{j:4d}/1000]  lr: 1e-4  loss: {v:.4f}\n", 100, 6000),
        ("\rEpoch {e}:  7%|##   | {j}/1000 [00:10<50:00,  1.00it/s, v_num=0, loss={v:.4f}]", 100, 6000),
        ("Epoch {e}/6\n{j}/1000 [====>....] - ETA: 2:10 - loss: {v:.4f}\n", 100, 6000),
    ],
)
def test_steps_of_an_epoch_count_over_the_epochs(form: str, first: int, last: int) -> None:
    text = "".join(
        form.format(e=1 + i // 10, j=first + 100 * (i % 10), v=loss) for i, loss in enumerate(LOSSES)
    )
    check(look(text), last=last)


def test_steps_that_go_on_over_the_epochs_stay() -> None:
    text = "".join(
        f"Epoch [{1 + i // 10}/6], Step [{s}/6000], Loss: {v:.4f}\n"
        for i, (s, v) in enumerate(zip(STEPS, LOSSES, strict=True))
    )
    check(look(text))


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ("Epoch {j}/60 - train_loss: {v:.4f} - val_loss: 5.0\n", "a step is an epoch"),
        ("Train loss: {v:.4f}\n", "lines were counted"),
        (
            "\nEpoch {j}\nVal loss:   5.0\nl1: 0.3 kl: 0.1 loss: 5.0 \n"
            "Train loss: {v:.5f}\nl1: 0.3 loss: {v:.3f} \n",
            "lines were counted",
        ),
    ],
)
def test_lines_without_a_step(form: str, why: str) -> None:
    curve = look("".join(form.format(j=i + 1, v=v) for i, v in enumerate(LOSSES)))
    check(curve, last=COUNT, held_out=COUNT if "al_loss" in form or "Val" in form else None)
    assert any(f.code == "steps-counted" and why in f.text for f in curve.findings)


@pytest.mark.parametrize(
    "prefix",
    [
        "{r}: ",
        "[rank{r}]: ",
        "[default{r}]:",
        "[{r}] ",
        "(Worker pid=7{r}) ",
        "[GPU{r}] ",
        "node-{r}  | ",
        "[pod/train-{r}-x7/main] ",
        "Rank {r} | ",
        '{{"rank": {r}, ',
        "worker-{r}: ",
        "[1,{r}]<stdout>:",
        "trainer-1  | [rank{r}]: ",
        "2026-01-01T00:0{r}:00 host{r} train[55{r}]: ",
        "[Process {r}] ",
        "[{r}/4] ",
    ],
)
def test_the_first_of_several_processes_is_the_run(prefix: str) -> None:
    text = "".join(
        f"{prefix.format(r=r)}step {s} loss {v * (1 + 0.1 * r):.4f}\n"
        for s, v in zip(STEPS, LOSSES, strict=True)
        for r in (1, 0, 2)
    )
    curve = look(text)
    check(curve)
    assert any("120 lines of others" in told for told in curve.partial)
    check(look("".join(f"{i}: {line}\n" for i, line in enumerate(lines("step {s} loss {v}").splitlines()))))


TABLES = {
    "MLflow's metric": "1700000{s:06d} {v} {s}\n",
    "MLflow's export": "abc,train_loss,{v},{s},1700000000000\nabc,lr,1e-4,{s},1700000000000\n",
    "Keras": "{s},{v},0.5\n",
    "a table of a page": "| {s} | {v} |\n",
    "a notebook's table": "{s}\t{v}\n",
    "blanks": "  {s}   {v}  1e-4\n",
    "numbers alone": "{s},{v}\n",
    "remarks": "{s},{v}\n",
    "a spreadsheet's": "{s};{v}\n",
    "pandas": "0   {s}   {v}\n",
}
HEADS = {
    "MLflow's export": "run_id,key,value,step,timestamp\n",
    "Keras": "iteration,loss,accuracy\n",
    "a table of a page": "| Step | Training Loss |\n|------|------|\n",
    "a notebook's table": "Step\tTraining Loss\n",
    "blanks": " step   loss   lr\n",
    "remarks": "# of run a\n# 2026-01-01\nstep,loss\n",
    "a spreadsheet's": "\ufeffsep=;\nstep;loss\n",
    "pandas": "      step    loss\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table(name: str) -> None:
    rows = lines(TABLES[name].removesuffix("\n"))
    if name == "MLflow's metric":
        rows = rows.replace("1700000", "1700000000")
    check(look(HEADS.get(name, "") + rows))


def test_a_second_run_in_a_table_of_single_values_is_named() -> None:
    rows = "".join(
        f"{run},loss,{s},{v * (1 + run)}\n" for s, v in zip(STEPS, LOSSES, strict=True) for run in (0, 1)
    )
    curve = look("run_id,metric,step,value\n" + rows)
    check(curve)
    assert any("'1'" in told for told in curve.partial)


@pytest.mark.parametrize("indent", [None, 1])
def test_tensorboard_s_points(indent: int | None) -> None:
    points = [[1.7e9 + s, s, v] for s, v in zip(STEPS, LOSSES, strict=True)]
    curve = look(json.dumps(points, indent=indent))
    check(curve)
    assert curve.throughput is not None
    assert curve.throughput.median_step_s == pytest.approx(1.0)


def varint(number: int) -> bytes:
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


def part(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def events(*, tensors: bool) -> bytes:
    """TensorBoard's event file, as PyTorch writes it or, with tensors, as TensorFlow 2 does."""

    def record(event: bytes) -> bytes:
        return struct.pack("<Q", len(event)) + bytes(4) + event + bytes(4)

    file = record(b"\x09" + struct.pack("<d", 1.7e9) + part(3, b"brain.Event:2"))
    for step, loss in zip(STEPS, LOSSES, strict=True):
        for tag, value in (("Loss/train", loss), ("reward", 3.0)):
            packed = struct.pack("<f", value)
            scalar = part(8, b"\x08\x01" + part(4, packed)) if tensors else b"\x15" + packed
            summary = part(5, part(1, part(1, tag.encode()) + scalar))
            file += record(b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + summary)
    return file


@pytest.mark.parametrize("tensors", [False, True])
def test_tensorboard_s_event_files(tensors: bool) -> None:
    file = events(tensors=tensors)
    curve = look(file)
    check(curve)
    assert curve.throughput is not None
    assert curve.throughput.median_step_s == pytest.approx(1.0)
    cut = look(file[:-5])
    assert cut.verdict == "learning"
    assert any("cut off" in told for told in cut.partial)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark(encoding: str) -> None:
    check(look(lines("step {s} loss {v:.4f}").encode(encoding)))


@pytest.mark.parametrize("count", [12, 20, 40])
def test_the_noise_of_a_curve_that_falls_is_no_spike(count: int) -> None:
    """The noise is larger where the curve is higher."""
    at, told, seen = np.arange(count) * 100.0, 0, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        losses = (0.2 + 0.8 * np.exp(-4 * np.arange(count) / count)) * (
            1 + 0.1 * generator.standard_normal(count)
        )
        told += bool(spikes(at, losses, *settle(losses)))
        middle = count // 2
        losses[middle] *= 3
        found = spikes(at, losses, *settle(losses))
        seen += any(one.first_step <= at[middle] <= one.last_step for one in found)
    assert told <= 3
    assert seen >= 90


@pytest.mark.parametrize("every", [1, 5, 100])
def test_a_stranger_s_fall_needs_no_rate_of_a_recipe_of_ours(every: int) -> None:
    """No rate is known of a log that names none, so few steps do not make its fall noise."""
    curve = look("".join(f"step {every * i} loss {v:.4f}\n" for i, v in enumerate(LOSSES)))
    assert curve.verdict == "learning"
    flat = 0.5 * (1 + 0.05 * np.random.default_rng(0).standard_normal(COUNT))
    level = look("".join(f"step {every * i} loss {v:.4f}\n" for i, v in enumerate(flat)))
    assert level.verdict == ("inconclusive" if every < 100 else "not learning")
