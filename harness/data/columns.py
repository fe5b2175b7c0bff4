"""Parquet columns as numpy arrays; a column that is not asked for is not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError

# Arrow reports damage through several unrelated exceptions, depending on which layer meets it.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError, EOFError)


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


def read_columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The named numeric columns: [N] for a number a row, [N, D] for a vector a row.

    Raises: HarnessError "dataset-file-missing", "dataset-file-corrupt", "dataset-feature-missing" or "dataset-feature-invalid".
    """
    with open_parquet(path) as file:
        try:
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
            table = file.read(columns=names, use_threads=False)
            table.validate(full=True)
            return {name: _numeric(path, name, table.column(name).combine_chunks()) for name in names}
        except _DAMAGE as error:
            raise corrupt(path, error) from error


def _numeric(path: Path, name: str, array: Any) -> np.ndarray:
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    rows = len(array)
    if array.null_count:
        raise _invalid(path, name, f"row {int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))} is null")
    kind = array.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = np.asarray(array.value_lengths()) if rows else np.zeros(0, np.int64)
        if rows and (lengths != lengths[0]).any():
            raise _invalid(path, name, f"row {int(np.argmax(lengths != lengths[0]))} has another number of values than row 0")
        flat = array.flatten()
        width = int(lengths[0]) if rows else 0
        if flat.null_count:
            at = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False)))
            raise _invalid(path, name, f"row {at // max(width, 1)} holds a null")
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
