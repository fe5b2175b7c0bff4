"""Tests that no pickle is ever loaded.

Neither our source nor the libraries load one when a file holds one.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.sample import sample_dataset_path
from tests.support.source import nodes

ROOT = Path(__file__).parents[1]
# Modules that turn bytes into objects by running what the bytes say.
FORBIDDEN_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch",
    "jsonpickle",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load_all",
    "pd.read_pickle",
    "np.loads",
    "np.fromregex",
}


def offences(found: Iterable[ast.AST]) -> Iterator[str]:
    for node in found:
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.partition(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                yield ast.unparse(node.func)
            yield from (
                f"{word.arg}="
                for word in node.keywords
                if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"
            )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "harness").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_our_source_loads_none(path: Path) -> None:
    assert list(offences(nodes(path))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from torch import load",
        "np.load(x, allow_pickle=True)",
        "yaml.load(x)",
        "eval(x)",
        "import joblib as j",
    ],
)
def test_the_scan_sees_one(source: str) -> None:
    assert list(offences(ast.walk(ast.parse(source))))


# --- and at run time: an interpreter that notes every object that a pickle asks for

WATCH = """
import os, sys
def note(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["PICKLE_LOG"], "a") as file:
            file.write(f"{arguments[0]}.{arguments[1]}\\n")
sys.addaudithook(note)
"""


class Bomb:
    """Pickled, it is a command that leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the watch, and a trained run whose trainer was watched."""
    root = tmp_path_factory.mktemp("pickle")
    (root / "sitecustomize.py").write_text(WATCH)
    sets = [
        f"--set={key}" for key in ("model.image_size=56", "data.augment=false", "train.save_every_steps=1")
    ]
    done = run(root, "train", "--steps=2", f"--run={root / 'run'}", *sets, HARNESS_LOADER_WORKERS="0")
    assert done.returncode == 0, done.stderr[-2000:]
    return root


def run(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {
        "PYTHONPATH": f"{root}:{ROOT}",
        "PICKLE_LOG": str(root / "log"),
        "HARNESS_CACHE": str(root / "cache"),
        "WANDB_MODE": "disabled",
    }
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *arguments],
        env=env | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def unpickled(root: Path) -> list[str]:
    return (root / "log").read_text().split() if (root / "log").is_file() else []


def test_the_watch_sees_one(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "PICKLE_LOG": str(tmp_path / "log")}
    subprocess.run(
        [sys.executable, "-c", "import pickle, decimal; pickle.loads(pickle.dumps(decimal.Decimal))"],
        env=env,
        check=True,
    )
    assert unpickled(tmp_path) == ["decimal.Decimal"]


def test_a_whole_run_loads_none(watched: Path) -> None:
    """Planning, data, statistics, training, saving, inspecting, analysing, reporting."""
    assert unpickled(watched) == []


def plant(place: Path, mark: Path) -> None:
    """In the place of every file below `place`, in turns, something that a careless reader would unpickle."""
    bomb = pickle.dumps(Bomb(mark))
    array = io.BytesIO()
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    torch = io.BytesIO()
    with zipfile.ZipFile(torch, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
    kinds = [bomb, array.getvalue(), torch.getvalue()]
    for number, file in enumerate(sorted(path for path in place.rglob("*") if path.is_file())):
        file.write_bytes(kinds[number % len(kinds)])
    for name, kind in zip(("extra.pkl", "extra.npy", "pytorch_model.bin"), kinds, strict=True):
        (place / name).write_bytes(kind)


@pytest.mark.parametrize("part", ["params", "train_state", "harness"])
def test_a_hostile_checkpoint_loads_none(watched: Path, tmp_path: Path, part: str) -> None:
    here, mark = shutil.copytree(watched / "run", tmp_path / "run"), tmp_path / "mark"
    plant(here / "checkpoints" / "2" / part, mark)
    for arguments in (
        ["inspect", str(here), "--deep"],
        ["train", "--resume", "--steps=3", f"--run={here}"],
        ["verify", str(here), "--steps=0"],
    ):
        done = run(watched, *arguments)
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert unpickled(watched) == []
    assert not mark.exists()


def test_a_hostile_dataset_loads_none(watched: Path, tmp_path: Path) -> None:
    """A table whose schema asks for a Python type by pickle, as pyarrow before 14.0.1 would have read it
    (CVE-2023-47248).
    """
    data, mark = shutil.copytree(sample_dataset_path(), tmp_path / "data"), tmp_path / "mark"
    file = sorted((data / "data").rglob("*.parquet"))[0]
    table = pq.read_table(file)
    field = table.schema.field("state").with_metadata(
        {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Bomb(mark)),
        }
    )
    pq.write_table(
        table.cast(pa.schema([field if each.name == "state" else each for each in table.schema])), file
    )
    plant(shutil.copytree(data, tmp_path / "other") / "data", mark)
    for place in (data, tmp_path / "other"):
        done = run(watched, "data", "--dataset", str(place), "--json")
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
    assert unpickled(watched) == []
    assert not mark.exists()
