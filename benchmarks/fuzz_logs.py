"""harness analyse on mutated logs: no traceback, no hang.

    python benchmarks/fuzz_logs.py [--count 10000] [--seed 0] [--limit 20] [--only SEEDLOG] [--keep DIR]

Seed logs of every form that people post are made here; each case is one of them with a few mutations of its
bytes, lines, numbers or packing. A case is good when it ends within --limit seconds in an answer or in a
HarnessError. Exit code 1 when one is not; --keep DIR writes those there.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import gzip
import io
import json
import lzma
import math
import random
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

UNITS = ("", "K", "M", "B")
NUMBERS = (
    b"nan", b"NaN", b"inf", b"-inf", b"Infinity", b"1e400", b"-1", b"0", b"-0.0", b"1e308", b"5e-324",
    b"9007199254740993", b"1" * 400, b"1e-400",
    b"None", b"null", b"", b"1K", b"999K", b"1.5M", b"0x10", b"1_000", b"1,000", b"1.000,5", b"\xd9\xa1",
    b"18446744073709551616",
)  # fmt: skip
WORDS = (
    b"\r", b"\n", b"\0", b"\x1b[31m", b"\x1b]0;x\x07", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"loss=",
    b"step=", b"Step 5: loss=0.1", b"{", b"}", b'"',
    b"'", b"=", b"=" * 5000, b"a" * 20_000, b" " * 20_000, b"1" * 20_000, b"it/s]",
    b"10/100 [00:10<01:00, 1.0it/s]", b"1/1 [99:99:99<", b"smpl:1K", b",",
    b"Running on: ", b"eval_loss=0.5 ", b"Num Epochs = 0", b"Total optimization steps = 0", b"99:99:99",
    b"2026-99-99 10:00:00 ", b"\xf0\x9f\x92\xa5",
)  # fmt: skip


def curve(step: int, rng: random.Random) -> float:
    return 0.05 + 0.5 * math.exp(-step / 2000) + rng.gauss(0, 0.01)


def rounded(count: float) -> str:
    """LeRobot's way to print a count: 999, 1K, 25K, 1M."""
    for unit in UNITS:
        if abs(count) < 1000:
            return f"{count:.0f}{unit}"
        count /= 1000
    return str(count)


def openpi(rng: random.Random, steps: int = 6000) -> str:
    rows = [
        f"Step {s}: grad_norm={1 + rng.random():.4f}, loss={curve(s, rng):.4f},"
        f" param_norm={1802.386 + s * 1e-5:.4f}"
        for s in range(0, steps, 100)
    ]
    return "\n".join(rows) + "\n"


def openpi_nan(_: random.Random) -> str:
    return "".join(f"Step {s}: grad_norm=nan, loss=nan, param_norm=nan\n" for s in range(0, 1000, 100))


def openpi_bars(rng: random.Random) -> str:
    """Progress bars, saves, a pause of hours and a resume between the records."""
    text, clock = "", 0
    for s in range(0, 4400, 100):
        clock += 659 + (18_000 if s == 2300 else 0)
        if s % 500 == 0:
            passed = f"{clock // 3600}:{clock // 60 % 60:02d}:{clock % 60:02d}"
            text += (
                f"\r {s // 150}%|##   | {s}/15000 [{passed}<23:48:14,  6.59s/it]14:00:49.191 [I] Deleted step"
                " 0.\n"
            )
        if s == 3000:
            text += "12:00:00.000 [I] Running on: host (1:train.py:196)\n"
        text += f"Step {s}: grad_norm=0.3, loss={curve(s, rng):.4f}, param_norm={1378 + s * 4e-4:.4f}   \n"
    return text


def pytorch(rng: random.Random, bars: bool = True) -> str:
    text = "13:48:16.000 [I] Training config: batch_size=256, num_train_steps=8000 (1:train_pytorch.py:517)\n"
    for s in range(0, 8000, 20):
        clock = f"{13 + s // 9000}:{s * 2 // 300 % 60:02d}:{s * 2 // 5 % 60:02d}"
        if s % 100 == 0:
            text += (
                f"{clock}.400 [I] step={s} loss={curve(s, rng):.4f} lr={5e-9 * (s + 1):.2e} grad_norm=1.20"
                " time=40.0s    (1:train_pytorch.py:560)\n"
            )
        if bars:
            values = f"loss={curve(s, rng) * 2:.4f}, lr=5e-09, step={s + 1}"
            passed = f"{s // 150:02d}:{s * 2 // 5 % 60:02d}"
            text += f"\rTraining:  {s // 80:2d}%|#   | {s + 1}/8000 [{passed}<53:20,  2.50it/s, {values}]"
    return text + "\n"


def lerobot(
    rng: random.Random,
    *,
    every: int = 200,
    batch: int = 32,
    steps: int = 30_000,
    evaluates: bool = False,
    nan: bool = False,
) -> str:
    text = "INFO 2025-11-17 21:50:11 ot_train.py:283 Output dir: outputs\n"
    for s in range(every, steps + 1, every):
        values = "loss:nan grdn:nan" if nan else f"loss:{curve(s, rng):.3f} grdn:2.421"
        clock = f"2025-11-{17 + s // 90_000} {s // 3600 % 24:02d}:{s // 60 % 60:02d}:{s % 60:02d}"
        seen = (
            f"step:{rounded(s)} smpl:{rounded(s * batch)} ep:{rounded(s * batch / 700)}"
            f" epch:{s * batch / 2e5:.2f}"
        )
        text += f"INFO {clock} ot_train.py:351 {seen} {values} lr:2.5e-05 updt_s:0.478 data_s:0.038\n"
        if evaluates and s % (5 * every) == 0:
            text += f"INFO {clock} ot_train.py:402 step {s}: eval_loss={0.12 + s * 1e-5:.4f}\n"
    return text


def transformers(rng: random.Random, *, bars: bool = True, quoted: bool = False, totals: bool = False) -> str:
    """The lines of Hugging Face's Trainer, which name no step."""
    text = (
        "***** Running training *****\n  Num Epochs = 10\n  Total optimization steps = 1,000\n"
        if totals
        else ""
    )
    quote = "'" if quoted else ""
    for s in range(1001):
        if bars:
            text += f"\r  {s // 10}%|##    | {s}/1000 [{s // 60:02d}:{s % 60:02d}<10:00,  1.00it/s]"
        if s and s % 10 == 0:
            values = {
                "loss": f"{curve(3 * s, rng):.4g}",
                "grad_norm": "1.25",
                "learning_rate": "5e-05",
                "epoch": f"{s / 100:.4g}",
            }
            text += (
                "\r"
                + " " * 30
                + "\r{" * bars
                + "{" * (not bars)
                + ", ".join(f"'{key}': {quote}{value}{quote}" for key, value in values.items())
                + "}\n"
            )
        if s and s % 200 == 0:
            text += (
                f"{{'eval_loss': {quote}{curve(s, rng):.4f}{quote}, 'eval_runtime': 1.2, 'epoch':"
                f" {s / 100}}}\n"
            )
    return text + "{'train_runtime': 1000.1, 'train_loss': 0.3, 'epoch': 10.0}\n"


def accelerate(rng: random.Random) -> str:
    bars = (
        f"\rSteps:  {s // 10}%|#  | {s}/1000 [{s // 60:02d}:{s % 60:02d}<10:00,  1.00it/s, lr=1e-5,"
        f" step_loss={curve(3 * s, rng):.4f}]"
        for s in range(1000)
    )
    return "".join(bars) + "\n"


def accelerate_lines(rng: random.Random) -> str:
    rows = (
        f"11/17/2025 21:{s // 60:02d}:{s % 60:02d} - INFO - __main__ - Step: {s}, Loss:"
        f" {curve(3 * s, rng):.4f}, LR: 1e-5\n"
        for s in range(1000)
    )
    return "".join(rows)


def metrics(rng: random.Random) -> str:
    rows = [
        {
            "step": s,
            "loss": curve(20 * s, rng),
            "grad_norm": 1.0,
            "param_norm": 69.6,
            "learning_rate": 3e-3,
            "step_s": 0.5,
            "data_s": 0.1,
            "time": 1.7e9 + s,
        }
        for s in range(300)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def wandb_table(rng: random.Random) -> str:
    rows = (f'"{s}","{curve(s, rng)}","0.03","0.1","{curve(s, rng)}"\n' for s in range(0, 20_000, 100))
    return '"Step","mine - loss","mine - loss__MIN","mine - loss__MAX","mine - val/loss"\n' + "".join(rows)


def tensorboard_table(rng: random.Random) -> str:
    return "Wall time,Step,Value\n" + "".join(
        f"{1.7e9 + s},{s},{curve(s, rng)}\n" for s in range(0, 9000, 30)
    )


def notes(rng: random.Random) -> str:
    rows = (
        f"- step `{s}`: `grad_norm={3 - s / 200:.4f}`, `loss={curve(9 * s, rng):.4f}`,"
        f" `param_norm={1803.77 + s * 1e-5:.4f}`\n"
        for s in range(100, 400, 25)
    )
    return "".join(rows)


SEEDS: dict[str, Callable[[random.Random], str]] = {
    "openpi": openpi,
    "openpi twice": lambda rng: openpi(rng, 3000) + openpi(rng),
    "openpi bars": openpi_bars,
    "openpi nan": openpi_nan,
    "pytorch": lambda rng: pytorch(rng, bars=False),
    "pytorch tee": pytorch,
    "lerobot": lerobot,
    "lerobot tail": lambda rng: "".join(
        line + "\n" for line in lerobot(rng).splitlines() if "K smpl" in line
    ),
    "lerobot eval": lambda rng: lerobot(rng, every=20, batch=8, steps=900, evaluates=True),
    "lerobot nan": lambda rng: lerobot(rng, steps=1000, nan=True),
    "lerobot millions": lambda rng: lerobot(rng, every=20_000, steps=2_000_000),
    "transformers": transformers,
    "transformers quoted": lambda rng: transformers(rng, quoted=True, bars=False),
    "transformers totals": lambda rng: transformers(rng, quoted=True, bars=False, totals=True),
    "accelerate bars": accelerate,
    "accelerate lines": accelerate_lines,
    "metrics": metrics,
    "wandb table": wandb_table,
    "tensorboard table": tensorboard_table,
    "notes": notes,
}


def numbers_changed(data: bytes, rng: random.Random) -> bytes:
    """Some of the numbers are others."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 3, 30))):
        at = rng.randrange(len(lines))
        digits = [i for i, byte in enumerate(lines[at]) if 48 <= byte < 58]
        if digits:
            begin = rng.choice(digits)
            end = begin
            while end < len(lines[at]) and lines[at][end : end + 1] in b"0123456789.e":
                end += 1
            lines[at] = lines[at][:begin] + rng.choice(NUMBERS) + lines[at][end:]
    return b"\n".join(lines)


def every_like_number_changed(data: bytes, rng: random.Random) -> bytes:
    """What stands behind one of the keys is the same everywhere."""
    key = rng.choice(
        (
            b"loss=",
            b"step=",
            b"Step ",
            b"step:",
            b"loss:",
            b"grad_norm=",
            b"param_norm=",
            b"smpl:",
            b"updt_s:",
            b"lr=",
            b"lr:",
            b"'loss': ",
            b'"step": ',
        )
    )
    return (
        data.replace(key, key + rng.choice(NUMBERS))
        if rng.random() < 0.7
        else data.replace(key, rng.choice(WORDS))
    )


def lines_changed(data: bytes, rng: random.Random) -> bytes:
    """Lines are missing, there twice, in another order, or cut."""
    lines = data.split(b"\n")
    kind = rng.randrange(5)
    if kind == 0:
        rng.shuffle(lines)
    elif kind == 1:
        lines = [line for line in lines if rng.random() < 0.5]
    elif kind == 2:
        at = rng.randrange(len(lines))
        lines[at:at] = lines[rng.randrange(len(lines)) :]
    elif kind == 3:
        lines = [line[: rng.randrange(len(line) + 1)] if rng.random() < 0.1 else line for line in lines]
    else:
        lines = lines[: rng.randrange(1, 12)]
    return b"\n".join(lines)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 10, 200))):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def words_put_in(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 5, 40))):
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(WORDS) + data[at:]
    return data


def cut(data: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(data) + 1)
    return data[begin : rng.randrange(begin, len(data) + 1)] if rng.random() < 0.5 else data[:begin]


def other_text(data: bytes, rng: random.Random) -> bytes:
    """Another encoding, other line ends, commas for points."""
    text = data.decode(errors="replace")
    return rng.choice(
        (
            lambda: text.encode("utf-16"),
            lambda: text.encode("utf-16")[:-1],
            lambda: data.replace(b"\n", b"\r\n"),
            lambda: data.replace(b"\n", b"\r"),
            lambda: data.replace(b"\n", b" "),
            lambda: data.replace(b".", b","),
            data.upper,
            lambda: data.replace(b"\n", b"\n\n"),
        )
    )()


def packed(data: bytes, rng: random.Random) -> bytes:
    """Packed, and then often damaged."""
    kind = rng.randrange(4)
    if kind == 3:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for index in range(rng.choice((1, 1, 2))):
                archive.writestr(f"train{index}.log", data)
        out = file.getvalue()
    else:
        out = (gzip.compress, bz2.compress, lzma.compress)[kind](data)
    return rng.choice(
        (
            lambda: out,
            lambda: bytes_changed(out, rng),
            lambda: cut(out, rng),
            lambda: out + out,
            lambda: out + data,
        )
    )()


MUTATIONS = (
    numbers_changed,
    every_like_number_changed,
    lines_changed,
    bytes_changed,
    words_put_in,
    cut,
    other_text,
    packed,
)


class TooLong(Exception):
    """A case that takes longer than its limit."""


def _stop(*_: object) -> None:
    raise TooLong


def judged(data: bytes, limit_s: float) -> str:
    """The verdict on a log, the code of its refusal, or the last lines of a traceback."""
    from harness.analyse.curve import analyse
    from harness.errors import HarnessError
    from harness.show.curve import curve_table

    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        found = analyse("-", stdin=data)
        found.model_dump_json()
        curve_table(found)
    except HarnessError as error:
        return error.code
    except TooLong:
        return "HANG"
    except Exception:
        return "TRACEBACK " + "".join(traceback.format_exc().splitlines(keepends=True)[-5:])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found.verdict


def case(index: int, seed: int, only: str | None) -> tuple[str, bytes]:
    """(seed log, its mutated bytes) of one case; the same for the same seed and index."""
    rng = random.Random(f"{seed} {index}")
    name = only or rng.choice(list(SEEDS))
    data = SEEDS[name](rng).encode()
    for _ in range(rng.choice((1, 1, 2, 4))):
        data = rng.choice(MUTATIONS)(data, rng)
    return name, data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds a case")
    parser.add_argument("--only", choices=list(SEEDS), help="mutate this seed log alone")
    parser.add_argument("--keep", type=Path, help="directory for the logs that are not good")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _stop)
    answers: collections.Counter[str] = collections.Counter()
    bad = 0
    slowest, begin = (0.0, -1), time.monotonic()
    for index in range(options.count):
        name, data = case(index, options.seed, options.only)
        start = time.monotonic()
        answer = judged(data, options.limit)
        slowest = max(slowest, (time.monotonic() - start, index))
        answers[answer.split()[0] if answer.startswith(("HANG", "TRACEBACK")) else answer] += 1
        if answer.startswith(("HANG", "TRACEBACK")):
            bad += 1
            print(f"case {index} of seed {options.seed} ({name}): {answer}")
            if options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{options.seed}-{index}.log").write_bytes(data)
        if (index + 1) % 500 == 0:
            print(
                f"{index + 1:,} of {options.count:,} after {time.monotonic() - begin:.0f} s, {bad} bad",
                file=sys.stderr,
            )
    for answer, count in answers.most_common():
        print(f"{count:>8,}  {answer}")
    print(
        f"{options.count:,} mutated logs, {bad} with a traceback or hang; the slowest took {slowest[0]:.1f} s"
        f" (case {slowest[1]})"
    )
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
