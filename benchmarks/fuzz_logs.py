"""harness analyse on mutated logs: no traceback, no hang.

    python -m benchmarks.fuzz_logs [--count 10000] [--seed 0] [--limit 20] [--only SEEDLOG] [--keep DIR]

Seed logs of every form that people post are made; each case is one of them with a few mutations of its
bytes, lines, numbers or packing. A case is good when it ends within --limit seconds in an answer or in a
HarnessError. Exit code 1 when one is not; --keep DIR writes those there.
"""

from __future__ import annotations

import argparse
import bz2
import collections
import gzip
import io
import lzma
import random
import signal
import sys
import time
import traceback
import zipfile
from pathlib import Path

from benchmarks.fuzz_logs_forms import SEEDS

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
