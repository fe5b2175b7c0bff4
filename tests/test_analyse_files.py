"""Tests files and directories that other programs write: wandb's, TensorBoard's, and where they lie."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path

import pytest

from harness.analyse.curve import analyse
from harness.analyse.source import open_source
from harness.artifacts import Curve
from harness.errors import HarnessError
from tests.test_analyse_strangers import COUNT, LOSSES, STEPS, check, part, varint

BLOCK, HEAD = 32_768, 7


def look(data: bytes) -> Curve:
    return analyse("-", stdin=data)


def wandb_file(records: list[bytes]) -> bytes:
    """The records as wandb writes them: a log of LevelDB behind a head of 7 bytes."""
    file = b":W&B" + b"\xe1\xbe\x00"
    for record in records:
        rest, begun = record, False
        while rest or not begun:
            left = BLOCK - len(file) % BLOCK
            if left < HEAD:
                file += bytes(left)
                left = BLOCK
            piece, rest = rest[: left - HEAD], rest[left - HEAD :]
            kind = (2 if rest else 1) if not begun else (3 if rest else 4)
            file += bytes(4) + struct.pack("<HB", len(piece), kind) + piece
            begun = True
    return file


def history(values: dict[str, object]) -> bytes:
    """A record of wandb's history. A name with a dot is nested."""
    items = b""
    for name, value in values.items():
        key = (
            part(1, name.encode())
            if "." not in name
            else b"".join(part(2, n.encode()) for n in name.split("."))
        )
        items += part(1, key + part(16, json.dumps(value).encode()))
    return b"\x08\x01" + part(2, items)


@pytest.mark.parametrize("size", [10, 40_000, 3_000_000])
def test_wandb_s_own_file(size: int) -> None:
    """Also where a record lies in several blocks, and beside one that holds no history."""
    records = [part(17, bytes(size))]
    for i, (step, loss) in enumerate(zip(STEPS, LOSSES, strict=True)):
        values = {"_step": step, "train.loss": loss, "train.lr": 1e-4, "grad_norm": 1.2, "picture": "x" * 700}
        held_out = {"val.loss": loss + 1} if i % 10 == 9 else {}
        records += [history({**values, **held_out}), part(7, bytes(100))]
    file = wandb_file(records)
    curve = look(file)
    check(curve, held_out=6)
    assert (curve.series.learning_rate[0], curve.series.grad_norm[0]) == (1e-4, 1.2)
    cut = look(file[:-120])
    assert cut.points == COUNT - 1
    assert any("cut off" in told for told in cut.partial)


def event(step: int, tag: str, value: float) -> bytes:
    scalar = part(1, part(1, tag.encode()) + b"\x15" + struct.pack("<f", value))
    data = b"\x09" + struct.pack("<d", 1.7e9 + step) + b"\x10" + varint(step) + part(5, scalar)
    return struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)


def events(first: int, last: int) -> bytes:
    """PyTorch's file: an event for each scalar."""
    data = b"\x09" + struct.pack("<d", 1.7e9) + part(3, b"brain.Event:2")
    file = struct.pack("<Q", len(data)) + bytes(4) + data + bytes(4)
    for step, loss in list(zip(STEPS, LOSSES, strict=True))[first:last]:
        file += (
            event(step, "train/loss", loss) + event(step, "optim/lr", 1e-4) + event(step, "grad_norm", 1.5)
        )
    return file


def test_the_scalars_of_a_step_belong_together() -> None:
    curve = look(events(0, COUNT))
    check(curve)
    assert curve.series.learning_rate[-1] == pytest.approx(1e-4)
    assert curve.series.grad_norm[-1] == pytest.approx(1.5)
    assert curve.read is not None
    assert curve.read.others == 0


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (
            {"wandb/run-1/run-a.wandb": wandb_file([history({"_step": s, "loss": 1 / s}) for s in STEPS])},
            COUNT,
        ),
        ({"tb dir/events.out.tfevents.1.h.0": events(0, COUNT)}, COUNT),
        ({f"it's/events.out.tfevents.{i}.h.0": events(30 * i, 30 * i + 30) for i in (0, 1)}, COUNT),
        (
            {
                "a/trainer_state.json": json.dumps(
                    {"log_history": [{"step": s, "loss": 1 / s} for s in STEPS]}
                ).encode()
            },
            COUNT,
        ),
        ({"0/ab/metrics/train/loss": b"".join(b"%d 0.5 %d\n" % (17e11 + s, s) for s in STEPS)}, COUNT),
        ({"x/slurm-7.out": b"step 1 loss 0.5\nstep 2 loss 0.4\n", "x/notes": b"no log"}, 2),
    ],
)
def test_the_fix_for_a_directory_reads_the_log_in_it(
    files: dict[str, bytes], read: int, tmp_path: Path
) -> None:
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(HarnessError) as error:
        open_source(str(tmp_path))
    assert error.value.code == "run-without-metrics"
    *before, last = shlex.split(str(error.value.fix))
    if before[0] == "cat":
        at = before.index("|")
        assert [*before[at:], last] == ["|", "harness", "analyse", "-"]
        curve = look(b"".join(Path(name).read_bytes() for name in before[1:at]))
    else:
        curve = analyse(last)
    assert curve.points == read
