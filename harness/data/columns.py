"""Parquet columns as numpy arrays; a column that is not asked for is not read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError

# Arrow reports damage through several unrelated exceptions, depending on which layer meets it.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError, EOFError)

# Rows that a large file is read by: some MiB.
_BATCH_ROWS = 1 << 16


def corrupt(path: Path, error: Exception | str) -> HarnessError:
    """The error for a parquet file that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return HarnessError("dataset-file-corrupt", f"{path} is not a whole parquet file", got=reason[:300], fix=f"delete {path} and download the dataset again")


def open_parquet(path: Path, metadata: Any = None) -> Any:
    """An open `pyarrow.parquet.ParquetFile`.

    Raises: HarnessError "dataset-file-missing" or "dataset-file-corrupt".
    """
    if not path.is_file():
        raise HarnessError("dataset-file-missing", f"the dataset lacks {path}", got="no such file", fix="download the dataset again")
    try:
        return pq.ParquetFile(path, metadata=metadata)
    except _DAMAGE as error:
        raise corrupt(path, error) from error


def read_rows(path: Path, skip: str | None = None) -> list[dict[str, Any]]:
    """Every row as a dict, without the columns whose name starts with `skip`.

    Raises: HarnessError "dataset-file-missing" or "dataset-file-corrupt".
    """
    with open_parquet(path) as file:
        try:
            names = [name for name in file.schema_arrow.names if skip is None or not name.startswith(skip)]
            rows: list[dict[str, Any]] = file.read(columns=names, use_threads=False).to_pylist()
        except _DAMAGE as error:
            raise corrupt(path, error) from error
    return rows


def read_columns(path: Path, names: list[str], pieces: list[int]) -> Iterator[dict[str, np.ndarray]]:
    """The named numeric columns, in pieces of so many rows: [N] for a number a row, [N, D] for a vector a row.

    Raises: HarnessError "dataset-file-missing", "dataset-file-corrupt", "dataset-rows-mismatch" when the pieces are not all of the
    file, "dataset-feature-missing" or "dataset-feature-invalid".
    """
    with open_parquet(path) as file:
        there = set(file.schema_arrow.names)
        lacking = [name for name in names if name not in there]
        if lacking:
            raise HarnessError(
                "dataset-feature-missing",
                f"{path} lacks columns that the metadata promises",
                got=", ".join(sorted(there)),
                need=", ".join(lacking),
                fix="download the dataset again, or correct meta/info.json",
            )
        if file.metadata.num_rows != sum(pieces):
            raise rows_mismatch(path, file.metadata.num_rows, sum(pieces))
        first = 0
        for table in _tables(path, file, names, pieces):
            yield {name: _numeric(path, name, table.column(name).combine_chunks(), first) for name in names}
            first += table.num_rows


def rows_mismatch(path: Path, found: int, rows: int) -> HarnessError:
    """The error for a file of other rows than the metadata says."""
    fix = f"delete {path} and download the dataset again: table and metadata are of different states"
    return HarnessError("dataset-rows-mismatch", f"{path} has other rows than the metadata says", got=found, need=rows, fix=fix)


def _tables(path: Path, file: Any, names: list[str], pieces: list[int]) -> Iterator[Any]:
    """A valid table for each piece. A file of one piece is read at once, a larger one only as far as the next piece needs."""
    try:
        if len(pieces) == 1:
            batches = iter([file.read(columns=names, use_threads=False)])
        else:
            batches = (pa.Table.from_batches([batch]) for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False))
        held = next(batches)
        for rows in pieces:
            while held.num_rows < rows:
                held = pa.concat_tables([held, next(batches)])
            piece, held = held.slice(0, rows), held.slice(rows)
            piece.validate(full=True)
            yield piece
    except StopIteration:
        raise corrupt(path, "it ends before its last row") from None
    except _DAMAGE as error:
        raise corrupt(path, error) from error


def _numeric(path: Path, name: str, array: Any, first: int) -> np.ndarray:
    """The values of `array`, which begins with row `first` of the file."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    rows = len(array)
    if array.null_count:
        raise _invalid(path, name, f"row {first + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))} is null")
    kind = array.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.asarray(array.value_lengths()) if rows else np.zeros(0, np.int64)
        if rows and (lengths != lengths[0]).any():
            raise _invalid(path, name, f"row {first + int(np.argmax(lengths != lengths[0]))} has another number of values than row {first}")
        flat = array.flatten()
        width = int(lengths[0]) if rows else 0
        if flat.null_count:
            at = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
            raise _invalid(path, name, f"row {first + at // max(width, 1)} holds a null")
        return _plain(path, name, flat).reshape(rows, width)
    return _plain(path, name, array)


def _plain(path: Path, name: str, array: Any) -> np.ndarray:
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise _invalid(path, name, f"holds {kind}, not numbers")
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def _invalid(path: Path, name: str, what: str) -> HarnessError:
    return HarnessError(
        "dataset-feature-invalid",
        f"{path}: column {name!r} cannot be read as numbers: {what}",
        need="one number, or a vector of one length, in every row",
        fix="map another feature in the recipe (data.state, data.actions), or repair the dataset",
    )
