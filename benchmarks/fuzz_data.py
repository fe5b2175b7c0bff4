"""Damages datasets and statistics in N ways each and reads them as `data`, `stats`, the loader and `stats
--compare` do.

    python -m benchmarks.fuzz_data [--times 2000] [--seed 0] [--limit-s 20] [--limit-gib 1.5] [--only
    datasets|statistics]

Each must end in an answer or in one of our own errors: no other exception, no crash of a library, within the
time, within the memory. Cases run one after another in a process that is started again when it dies. Prints
counts by outcome, and how to run one case again: `--first N --times 1` with the same seed. Exit code 1 for
any traceback, hang or crash.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

KINDS = ("datasets", "statistics")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-s", type=float, default=20)
    parser.add_argument("--limit-gib", type=float, default=1.5)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_cases(arguments)
        return 0
    return watch(arguments)


def watch(arguments: argparse.Namespace) -> int:
    """Runs all cases in processes that are watched, and prints what came of them."""
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    console = Console()
    table = Table(
        "",
        "accepted",
        "refused",
        "traceback",
        "hang",
        "crash",
        title=f"{arguments.times:,} each, seed {arguments.seed}",
        title_justify="left",
    )
    bad, codes = [], collections.Counter[str]()
    for kind in [arguments.only] if arguments.only else KINDS:
        counts: collections.Counter[str] = collections.Counter()
        for case in track(
            outcomes(kind, arguments), total=arguments.times, description=kind, console=Console(stderr=True)
        ):
            counts[case["outcome"]] += 1
            codes[case.get("code", "")] += 1
            if case["outcome"] in ("traceback", "hang", "crash"):
                bad.append(
                    f"{kind} {case['number']}: {case['outcome']} after"
                    f" {case.get('done', '?')}\n{case.get('text', '')}"
                )
        table.add_row(
            kind, *(f"{counts[name]:,}" for name in ("accepted", "refused", "traceback", "hang", "crash"))
        )
    console.print(table)
    console.print(", ".join(f"{code} {count}" for code, count in codes.most_common() if code), markup=False)
    for text in bad[:20]:
        console.print(text, markup=False)
    return 1 if bad else 0


def outcomes(kind: str, arguments: argparse.Namespace) -> Any:
    """What came of each case, in order.

    A process that says nothing for too long is ended, and its case is a hang; one that dies, a crash.
    """
    number, end = arguments.first, arguments.first + arguments.times
    while number < end:
        options = [
            "--child",
            kind,
            "--seed",
            arguments.seed,
            "--first",
            number,
            "--times",
            end - number,
            "--limit-gib",
            arguments.limit_gib,
        ]
        command = [sys.executable, "-m", "benchmarks.fuzz_data", *map(str, options)]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
            selectors.DefaultSelector() as ready,
        ):
            assert child.stdout is not None
            assert child.stderr is not None
            ready.register(child.stdout, selectors.EVENT_READ)
            started = ""
            # The first answer comes after the libraries are loaded and the datasets are written.
            limit_s = arguments.limit_s + 60
            while number < end:
                line = child.stdout.readline() if ready.select(limit_s) else None
                case = json.loads(line) if line else {}
                if "starts" in case:
                    started, limit_s = case["starts"], arguments.limit_s
                    continue
                if not line:
                    child.kill()
                    case = {"outcome": "hang" if line is None else "crash", "number": number, "done": started}
                    case["text"] = (child.communicate()[1] or "")[-1500:]
                yield case
                number += 1
                if not line:
                    break


def run_cases(arguments: argparse.Namespace) -> None:
    """Cases `first` to `first + times`, each of a seed of its own; a line of JSON before and after each."""
    from harness.errors import HarnessError

    limit = int(arguments.limit_gib * 2**30)
    case = datasets if arguments.child == "datasets" else statistics
    with tempfile.TemporaryDirectory() as scratch:
        prepared = case.prepare(Path(scratch))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for number in range(arguments.first, arguments.first + arguments.times):
            answer: dict[str, Any] = {"number": number, "outcome": "accepted"}
            try:
                chance = random.Random(f"{arguments.seed} {number}")
                answer["done"] = done = case.damage(Path(scratch) / "copy", prepared, chance)
                print(json.dumps({"starts": done}), flush=True)
                case.read(Path(scratch) / "copy", prepared)
            except HarnessError as refusal:
                answer |= {"outcome": "refused", "code": refusal.code}
            except BaseException:
                answer |= {"outcome": "traceback", "text": traceback.format_exc()[-3000:]}
            print(json.dumps(answer), flush=True)


class datasets:
    """Small datasets of every form, read as a run would."""

    @staticmethod
    def prepare(place: Path) -> list[Path]:
        from tests.support.dataset_damage import write_forms

        return write_forms(place / "forms")

    @staticmethod
    def damage(copy: Path, forms: list[Path], chance: random.Random) -> str:
        from tests.support.dataset_damage import damage_dataset

        shutil.rmtree(copy, ignore_errors=True)
        form = chance.choice(forms)
        shutil.copytree(form, copy)
        return f"{form.name}: {damage_dataset(copy, chance)}"

    @staticmethod
    def read(copy: Path, _: list[Path]) -> None:
        from harness.data.loader import Loader
        from harness.errors import HarnessError
        from harness.flow.chain import Chain
        from harness.flow.pages import write_dataset_page
        from harness.recipe.load import load_recipe
        from harness.run.directory import RunDir

        names = [
            "state=observation.state",
            "actions=action",
            "cameras.base_0_rgb=cam",
            "cameras.left_wrist_0_rgb=null",
        ]
        recipe = load_recipe(
            "smoke", [f"data.dataset={copy}", "model.image_size=56", *(f"data.{name}" for name in names)]
        )
        with tempfile.TemporaryDirectory() as run:
            chain = Chain(RunDir(run), recipe)
            try:
                found = chain.dataset()
            except HarnessError:
                # What `verify` still does with a dataset that cannot be read.
                _hash(recipe)
                raise
            stats = chain.stats(found)
            Loader(recipe, found, stats, batch_size=min(4, found.frames), seed=0, workers=0).batch(0)
            write_dataset_page(chain, found)


def _hash(recipe: Any) -> None:
    from harness.data.dataset import content_hash
    from harness.data.fetch import resolve
    from harness.errors import HarnessError

    with contextlib.suppress(HarnessError):
        content_hash(resolve(recipe.data).path)


class statistics:
    """Statistics of the sample in every form that people have, compared with ours under both
    normalizations.
    """

    @staticmethod
    def prepare(_: Path) -> tuple[Any, list[Any]]:
        from harness.artifacts import Dataset
        from harness.data.sample import sample_dataset_path
        from harness.data.stats import compute
        from harness.recipe.load import load_recipe
        from tests.support.dataset_damage import norm_forms

        ours = compute(load_recipe("smoke"), Dataset.model_construct(path=str(sample_dataset_path())))
        return ours, norm_forms(ours)

    @staticmethod
    def damage(copy: Path, prepared: tuple[Any, list[Any]], chance: random.Random) -> str:
        from tests.support.dataset_damage import damage_norm_stats

        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "norm_stats.json").write_text(json.dumps(chance.choice(prepared[1])))
        return damage_norm_stats(copy / "norm_stats.json", chance)

    @staticmethod
    def read(copy: Path, prepared: tuple[Any, list[Any]]) -> None:
        from harness.data.compare import compare_statistics
        from harness.data.lerobot import open_dataset
        from harness.data.sample import sample_dataset_path
        from harness.errors import HarnessError
        from harness.show.dataset import comparison_table

        refused: list[HarnessError] = []
        for path in (copy, copy / "norm_stats.json"):
            for mode in ("quantile", "zscore"):
                try:
                    comparison_table(
                        compare_statistics(
                            prepared[0], path, mode=mode, blocks=open_dataset(sample_dataset_path()).blocks()
                        )
                    )  # type: ignore[arg-type]
                except HarnessError as refusal:
                    refused.append(refusal)
        if refused:
            raise refused[0]


if __name__ == "__main__":
    sys.exit(main())
