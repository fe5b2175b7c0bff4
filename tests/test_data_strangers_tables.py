"""Tests parquet files made to do harm: no small file becomes large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data import columns, unpack
from tests.support import lerobot_writer as writer
from tests.support.dataset_breaks import (
    V3_DATA,
    V3_EPISODES,
)
from tests.support.strangers import code_of, limited


def _read(root: Path) -> str:
    return f"""
from harness.data.dataset import describe
from harness.errors import HarnessError
from tests.support.dataset_breaks import recipe
from pathlib import Path
try:
    describe(recipe(Path({str(root)!r})))
except HarnessError as error:
    print(error.code)
"""


def test_an_episodes_table_of_millions_of_rows_is_not_unpacked(tmp_path: Path) -> None:
    """23 kB became 626 MB, 440 kB took over two minutes."""
    root = writer.write(tmp_path / "set", version="v3.0")
    table = pq.read_table(root / V3_EPISODES)
    rows = 8_000_000
    same = {
        name: pa.DictionaryArray.from_arrays(
            pa.array(np.zeros(rows, np.int8)), table.column(name).slice(0, 1).combine_chunks()
        )
        for name in table.column_names
    }
    same = {name: value.dictionary_decode() for name, value in same.items() if not name.startswith("stats/")}
    pq.write_table(pa.table(same), root / V3_EPISODES, compression="zstd", row_group_size=rows)
    assert (root / V3_EPISODES).stat().st_size < 500_000
    done = limited(_read(root))
    assert done.stdout.strip() == "dataset-file-bomb", done.stderr[-2000:]


@pytest.mark.parametrize("column", ["task", "cam"])
def test_one_large_value_a_million_times_is_not_unpacked(tmp_path: Path, column: str) -> None:
    """A dictionary holds it once: a file of some kB would be terabytes of texts or pictures."""
    root = writer.write(tmp_path / "set", version="v3.0", lengths=(7, 5, 4))
    value, rows = "x" * 1_000_000, 200_000
    indices = pa.array(np.zeros(rows, np.int32))
    if column == "task":
        table = pa.table(
            {
                "task_index": pa.array(range(rows)),
                "task": pa.DictionaryArray.from_arrays(indices, pa.array([value])),
            }
        )
        pq.write_table(table, root / "meta/tasks.parquet", compression="zstd")
    else:
        pictures = pa.DictionaryArray.from_arrays(indices, pa.array([value.encode()]))
        pq.write_table(pa.table({"cam": pictures}), tmp_path / "big.parquet", compression="zstd")
        (root / V3_DATA).write_bytes((tmp_path / "big.parquet").read_bytes())
    look = _read(root)
    if column == "cam":
        look = f"""
from harness.data.encoded import EncodedColumn
from harness.errors import HarnessError
from pathlib import Path
root = Path({str(root)!r})
try:
    EncodedColumn().get(root, root / {V3_DATA!r}, "cam", 3)
except HarnessError as error:
    print(error.code)
"""
    done = limited(look)
    assert done.stdout.strip() in ("dataset-file-bomb", "dataset-metadata-invalid"), done.stderr[-2000:]


def test_a_dictionary_of_few_large_values_is_read_as_ever(tmp_path: Path) -> None:
    """A camera that stands still: one picture for all frames, some 300 MB if each had its own."""
    picture = np.random.default_rng(0).bytes(1_500_000)
    cells = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(150, np.int32)), pa.array([picture])
    ).dictionary_decode()
    pq.write_table(pa.table({"cam": cells}), tmp_path / "x.parquet")
    with columns.open_parquet(tmp_path, tmp_path / "x.parquet") as (file, raw):
        rows, _ = unpack.rows_at_once(raw, file.metadata, 0, "cam")
        found = columns.read_group(file, raw, 0, "cam")
    assert (rows is None, len(found), found[149].as_py()) == (True, 150, picture)


def test_numbers_that_a_small_file_claims_are_not_unpacked(tmp_path: Path) -> None:
    rows = 20_000_000
    pq.write_table(
        pa.table({"x": pa.array(np.zeros(rows, np.int64))}), tmp_path / "x.parquet", row_group_size=rows
    )
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    assert (
        code_of(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [rows])))
        == "dataset-file-bomb"
    )


@pytest.mark.parametrize(
    "values",
    [
        pa.array([["a"], ["b"]]),
        pa.array([[["a"]], [["b"]]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"x", b"y"]),
        pa.array([["x" * 10], ["y"]], pa.list_(pa.string())),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused_before_it_is_read(
    tmp_path: Path, values: pa.Array
) -> None:
    pq.write_table(pa.table({"x": values}), tmp_path / "x.parquet")
    assert code_of(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [2]))) in (
        "dataset-feature-invalid",
    )


def test_the_pages_are_those_that_the_footer_speaks_of(tmp_path: Path) -> None:
    """Against pyarrow's own sums, for every form in which it writes pages."""
    table = pa.table(
        {
            "a": pa.array(np.arange(50_000)),
            "v": pa.array([[float(i), 1.0] for i in range(50_000)]),
            "s": [str(i % 7) * 9 for i in range(50_000)],
        }
    )
    for version in ("1.0", "2.0"):
        for compression in ("snappy", "zstd", "none"):
            pq.write_table(
                table,
                tmp_path / "x.parquet",
                data_page_version=version,
                compression=compression,
                data_page_size=4096,
                row_group_size=20_000,
            )
            with columns.open_parquet(tmp_path, tmp_path / "x.parquet") as (file, raw):
                for group in range(file.metadata.num_row_groups):
                    for leaf in unpack.leaves(file.metadata, ["a", "v", "s"]):
                        chunk = file.metadata.row_group(group).column(leaf)
                        found = list(unpack.pages(raw, chunk))
                        assert sum(page.values for page in found) == chunk.num_values
                        assert sum(page.packed_bytes for page in found) < chunk.total_compressed_size


def test_a_page_that_claims_more_than_its_bytes_can_hold_is_refused(tmp_path: Path) -> None:
    """The footer does not know of it: the claim stands in the page's own header."""
    pq.write_table(
        pa.table({"x": pa.array(np.zeros(100_000_000, np.uint8)).cast(pa.uint8())}),
        tmp_path / "x.parquet",
        use_dictionary=False,
        compression="zstd",
        data_page_size=1 << 28,
        row_group_size=1 << 28,
    )
    assert (
        code_of(lambda: next(columns.read_columns(tmp_path, tmp_path / "x.parquet", ["x"], [100_000_000])))
        == "dataset-file-bomb"
    )


@pytest.mark.parametrize(
    "header",
    [
        b"\x15" * 40,
        b"\x00",
        b"\x1c" * 5000,
        b"\x19\xff\xff\xff\xff\x0f",
        b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_any_bytes_are_no_header_of_a_page(tmp_path: Path, header: bytes) -> None:
    class Chunk:
        dictionary_page_offset, data_page_offset, total_compressed_size, num_values = None, 4, len(header), 9

    (tmp_path / "x").write_bytes(b"PAR1" + header)
    with (tmp_path / "x").open("rb") as file, pytest.raises(unpack.TooMuch):
        list(unpack.pages(file, Chunk))
