"""Command lines changed at random, given to `harness import openpi`: each must end in an answer or in one
HarnessError, in seconds.

python -m benchmarks.fuzz_import [LINES] [--seed N]

Default: 1,000 lines. Exit code 1 for a traceback or a line of over 20 s.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import sys
import time
import traceback
from collections import Counter
from types import FrameType

import click

from harness.cli import app
from harness.errors import HarnessError

_LONGEST_S = 20
LINES = (
    "pi05_libero --exp-name libero_lora --model.paligemma-variant gemma_2b_lora --batch-size 8 --overwrite",
    (
        "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 uv run scripts/train.py pi05_libero --exp-name=x --ema-decay None"
        " 2>&1 | tee logs/x.txt"
    ),
    "nohup uv run scripts/train.py pi0_libero_low_mem_finetune --model.pi05 --exp-name=x > log.txt 2>&1 &",
    (
        "CUDA_VISIBLE_DEVICES=0,1 uv run torchrun --standalone --nnodes=1 --nproc_per_node=2"
        " scripts/train_pytorch.py pi05_libero --exp_name a"
    ),
    (
        "python -m torch.distributed.run --nproc-per-node 8 scripts/train_pytorch.py pi0_aloha_sim --exp_name"
        " y --pytorch-weight-path /w"
    ),
    (
        "accelerate launch --multi_gpu --num_processes=2 $(which lerobot-train) --dataset.repo_id=me/ds"
        " --policy.type=pi05 --batch_size=8"
    ),
    (
        "lerobot-train --dataset.repo_id=me/ds --policy.path=lerobot/pi05_base --steps=3000"
        " --peft.method_type=LORA"
    ),
    (
        "cd openpi && source .venv/bin/activate; bash -c 'python scripts/train.py pi05_libero --exp-name \"a"
        " b\" --fsdp-devices 4'"
    ),
    (
        "export HF_HUB_OFFLINE=1\nuv run scripts/train.py pi05_droid \\\n  --exp-name x \\\n  --data.repo-id"
        " me/droid # a comment\n"
    ),
)
_SIGNS = (
    *"'\"`$()<>|&;\\#\n\t{}=-!*~ \x00\x1b\u202e\ud800é",
    "$(",
    "2>&1",
    "&&",
    "||",
    "<(",
    "${",
    "\\\n",
    "--",
    "--no-",
    "=",
    "-m",
    "<<EOF",
    ".py",
)
_VALUES = (
    "0",
    "-1",
    "9" * 25,
    "1e309",
    "nan",
    "None",
    "True",
    "",
    "../..",
    "[1,2]",
    "a" * 3000,
    "½",
    "0x10",
    "1_0",
    "-inf",
)


def changed(rng: random.Random) -> str:
    """One of LINES with one to six changes: a letter, a word, a sign, a value, a cut, a line within a
    line.
    """
    line = rng.choice(LINES)
    for _ in range(rng.randint(1, 6)):
        words, place = line.split(" "), rng.randrange(len(line) + 1)
        word = rng.randrange(len(words))
        kind = rng.randrange(9)
        if kind == 0:
            line = line[:place] + rng.choice(_SIGNS) + line[place:]
        elif kind == 1:
            line = line[:place] + line[place + 1 :]
        elif kind == 2:
            line = " ".join(words[:word] + words[word + 1 :])
        elif kind == 3:
            line = " ".join([*words[:word], rng.choice(rng.choice(LINES).split(" ")), *words[word:]])
        elif kind == 4:
            line = " ".join(
                [*words[:word], words[word].partition("=")[0] + "=" + rng.choice(_VALUES), *words[word + 1 :]]
            )
        elif kind == 5:
            line = " ".join([*words[: word + 1], rng.choice(_VALUES), *words[word + 2 :]])
        elif kind == 6:
            line = line[:place]
        elif kind == 7:
            line = rng.choice(
                ("bash -lc '{}'", 'ssh host "{}"', "$ {}", "(base) me@box:~/x$ {}", "{0}\n{0}", "( {} )")
            ).format(line)
        else:
            line = (
                line[:place]
                + chr(rng.choice((rng.randrange(0x20), rng.randrange(0x80, 0x2FFF))))
                + line[place:]
            )
    return line


def answered(arguments: list[str]) -> str:
    """How the verb ended: "exit N", or "refused CODE".

    Raises: whatever else the verb raises.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            code = app(["import", "openpi", *arguments], standalone_mode=False)
        except HarnessError as error:
            return f"refused {error.code}"
        except click.ClickException:
            return "usage"
    return f"exit {code or 0}"


def _too_long(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"more than {_LONGEST_S} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = random.Random(chosen.seed)
    signal.signal(signal.SIGALRM, _too_long)
    ends: Counter[str] = Counter()
    slowest, bad = 0.0, 0
    for number in range(chosen.lines):
        line = changed(rng)
        arguments = [
            *(line.split(" ") if rng.random() < 0.3 else [line]),
            *rng.choice(([], ["--json"], ["--gpu", "rtx_4090"])),
        ]
        start = time.monotonic()
        signal.alarm(_LONGEST_S)
        try:
            ends[answered(arguments)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            bad += 1
            ends[f"BAD {type(error).__name__}"] += 1
            print(f"line {number}: {arguments!r}\n{traceback.format_exc(limit=-4)}", file=sys.stderr)
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - start)
    for end, count in ends.most_common():
        print(f"{count:6}  {end}")
    print(f"{chosen.lines} lines, {bad} without an answer; the slowest took {slowest:.2f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
