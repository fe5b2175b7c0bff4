"""The changes to a run: one byte, pixel, number or key at a time. Part of `benchmarks.flips`."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    """What a run is made from: `root`/data, weights, cache."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    @property
    def run(self) -> Path:
        return self.root / "run"


def flip_byte(file: Path, at: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


def parquet(place: Place) -> Path:
    return sorted((place.data / "data").rglob("*.parquet"))[0]


def image_byte(place: Place, _: Path) -> None:
    flip_byte(parquet(place), 0.4)


def rewrite(file: Path, column: str, change: Callable[[Any], Any]) -> None:
    """Puts `change` of the first row's value of a column in its place; everything else stays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    index, values = table.schema.get_field_index(column), table.column(column).to_pylist()
    values[0] = change(values[0])
    pq.write_table(
        table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type)),
        file,
    )


def one_pixel(place: Place, _: Path) -> None:
    from PIL import Image

    def other(value: dict[str, Any]) -> dict[str, Any]:
        picture = Image.open(io.BytesIO(value["bytes"])).convert("RGB")
        red, green, blue = picture.getpixel((100, 100))
        picture.putpixel((100, 100), (red ^ 1, green, blue))
        out = io.BytesIO()
        picture.save(out, "PNG")
        return value | {"bytes": out.getvalue()}

    rewrite(parquet(place), "image", other)


def state_value(place: Place, _: Path) -> None:
    rewrite(parquet(place), "state", lambda value: [value[0] + 1e-3, *value[1:]])


def meta(place: Place, _: Path) -> None:
    file = place.data / "meta" / "tasks.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["task"] += "."
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def weight_byte(place: Place, _: Path) -> None:
    """A byte in the middle of the largest file, which holds array data."""
    flip_byte(
        max(place.weights.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0), 0.5
    )


def weight_value(place: Place, _: Path) -> None:
    """One number of one array, in a checkpoint that is written anew and whole."""
    subprocess.run([sys.executable, "-c", _ONE_NUMBER, str(place.weights)], check=True, capture_output=True)


_ONE_NUMBER = """
import shutil, sys
from pathlib import Path
import numpy as np
import orbax.checkpoint as ocp
from harness.checkpoint.leaves import read_array
from harness.checkpoint.weights import parameter_leaves
place, tree = Path(sys.argv[1]), {}
leaves = parameter_leaves(place, {})
arrays = {path: np.array(read_array(leaf.store, leaf.dtype)) for path, leaf in leaves.items()}
arrays["PaliGemma/img/embedding/kernel"].reshape(-1)[0] += 1
for path, array in arrays.items():
    node = tree
    *parents, last = f"params/{path}/value".split("/")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = array
shutil.rmtree(place)
with ocp.PyTreeCheckpointer() as saver:
    saver.save(place, tree)
"""


def replace(name: str, before: str, after: str) -> Callable[[Place, Path], None]:
    def change(_: Place, run: Path) -> None:
        for each in name.split():
            text = (run / each).read_text()
            if before not in text:
                raise SystemExit(f"{each} has no {before!r}")
            (run / each).write_text(text.replace(before, after, 1))

    return change


def seed_in_both(place: Place, run: Path) -> None:
    replace("recipe.yaml", "seed: 42", "seed: 43")(place, run)
    replace("manifest.json", '"seed": 42', '"seed": 43')(place, run)


def a_statistic(_: Place, run: Path) -> None:
    body = json.loads((run / "norm_stats.json").read_text())
    body["norm_stats"]["state"]["q01"][0] += 1e-6
    (run / "norm_stats.json").write_text(json.dumps(body))


def last_digit(_: Place, run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    body = json.loads(lines[1])
    body["loss"] *= 1 + 1e-7
    lines[1] = json.dumps(body)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def checkpoint_byte(_: Place, run: Path) -> None:
    files = [path for path in (run / "checkpoints" / "2" / "params").rglob("*") if path.is_file()]
    flip_byte(max(files, key=lambda path: path.stat().st_size), 0.5)


def a_comment(place: Place, _: Path) -> None:
    """In a copy of the package, which is then imported in its place."""
    import harness as package

    copy = place.root / "source" / "harness"
    shutil.copytree(Path(package.__path__[0]), copy, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "units.py").open("a") as file:
        file.write("# another\n")


def nothing(_: Place, __: Path) -> None:
    return
