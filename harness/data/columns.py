"""Parquet columns as numpy arrays. Columns that are not requested are not read."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.data.mending import another_copy, correct, damaged, hub_of
from harness.data.paths import open_file
from harness.data.unpack import TooMuch, check_footer, check_groups, check_numbers, rows_at_once
from harness.errors import HarnessError

# Arrow reports damage through several unrelated exceptions, depending on which layer meets it.
_DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
    TypeError,
    RuntimeError,
)

# The columns of every LeRobot table, which no recipe names.
BOOKKEEPING = ["timestamp", "frame_index", "episode_index", "index", "task_index"]
# Rows per read of a large file: some MiB.
_BATCH_ROWS = 1 << 16
# Lists in lists, as the axes of a feature.
MOST_AXES = 8
# Rows converted to dicts at a time.
_BATCH_DICTS = 1 << 12


def corrupt(path: Path, error: Exception | str) -> HarnessError:
    """The error for a parquet file that cannot be read."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return damaged("dataset-file-corrupt", f"{path} is not a whole parquet file", path, got=reason[:300])


def bomb(path: Path, error: TooMuch) -> HarnessError:
    """The error for a parquet file that would unpack to more bytes than a dataset's file does."""
    fix = (
        "do not use this dataset unless you know who made it; write the file again with LeRobot's own writer"
    )
    need = "pages and rows that belong to a recording of this size"
    return HarnessError(
        "dataset-file-bomb",
        f"{path} was not unpacked: {error}",
        got=f"{path.stat().st_size:,} bytes",
        need=need,
        fix=fix,
    )


@contextmanager
def open_parquet(root: Path, path: Path, metadata: Any = None) -> Iterator[Any]:
    """An open parquet file of the dataset in `root`, as `Opened`.

    Raises: HarnessError "dataset-file-missing", "dataset-file-corrupt", "dataset-file-bomb", and those of
    `open_file`.
    """
    with open_file(root, path) as raw:
        with refusing(path):
            check_footer(raw)
            file = pq.ParquetFile(raw, metadata=metadata)
        yield Opened(file, raw)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Converts errors raised while a parquet file is read into HarnessErrors.

    Raises: HarnessError "dataset-file-bomb" or "dataset-file-corrupt".
    """
    try:
        yield
    except TooMuch as error:
        raise bomb(path, error) from error
    except _DAMAGE as error:
        raise corrupt(path, error) from error


class Opened(NamedTuple):
    """A `pyarrow.parquet.ParquetFile` (`parquet`) and the open file that it reads (`raw`)."""

    parquet: Any
    raw: BinaryIO


def read_rows(
    root: Path, path: Path, wanted: Callable[[Any], bool], most_rows: int
) -> Iterator[dict[str, Any]]:
    """Every row as a dict of the columns whose Arrow field satisfies `wanted`.

    Raises: HarnessError as `open_parquet`; "dataset-file-bomb" also for more than `most_rows` rows.
    """
    with open_parquet(root, path) as (file, raw), refusing(path):
        if file.metadata.num_rows > most_rows:
            raise TooMuch(
                f"it claims {file.metadata.num_rows:,} rows, and {most_rows:,} were expected at most"
            )
        names = [field.name for field in file.schema_arrow if wanted(field)]
        for group, rows in enumerate(check_groups(file.metadata)):
            if rows:
                yield from (row for batch in _batches(file, raw, group, names) for row in batch.to_pylist())


def _batches(file: Any, raw: BinaryIO, group: int, names: list[str]) -> Iterator[Any]:
    """Arrow record batches of a row group's columns, a few rows at a time.

    Raises: TooMuch.
    """
    limits = [rows_at_once(raw, file.metadata, group, name) for name in names]
    rows = min([_BATCH_DICTS, *(rows for rows, _ in limits if rows is not None)])
    left = sum(limit for _, limit in limits)
    for batch in file.iter_batches(rows, row_groups=[group], columns=names, use_threads=False):
        left -= batch.nbytes
        if left < 0:
            raise TooMuch(
                f"columns {', '.join(names)} unpack to more than {sum(limit for _, limit in limits):,} bytes"
            )
        yield batch


def read_group(file: Any, raw: BinaryIO, group: int, name: str) -> Any:
    """One column of one row group as an Arrow array.

    Raises: TooMuch, and Arrow's own exceptions.
    """
    rows, limit = rows_at_once(raw, file.metadata, group, name)
    if rows is None:
        chunks = file.read_row_group(group, columns=[name], use_threads=False).column(name)
    else:
        found = []
        for batch in file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
            found.append(batch.column(name))
            if sum(array.nbytes for array in found) > limit:
                raise TooMuch(f"column {name!r} unpacks to more than {limit:,} bytes")
        chunks = pa.chunked_array(found)
    # Combining would copy a single chunk as well.
    return chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()


def read_columns(
    root: Path,
    path: Path,
    names: list[str],
    pieces: list[int],
    passed: Container[int] = (),
    spare: Container[str] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """The named numeric columns, in pieces of `pieces` rows: [N] for one number per row, [N, D] for vectors.

    The pieces whose position in the list is in `passed` are not looked at, and come empty. A column
    in `spare` that the file does not have is left out.

    Raises: HarnessError as `open_parquet`; "dataset-rows-mismatch" if the pieces do not add up to the whole
    file, "dataset-feature-missing" or "dataset-feature-invalid".
    """
    with open_parquet(root, path) as (file, raw):
        with refusing(path):
            schema = file.schema_arrow
        names = [name for name in names if name not in spare or name in schema.names]
        for name in names:
            if schema.names.count(name) > 1:
                raise _invalid(path, name, "it stands there more than once", anew=True)
        lacking = [name for name in names if schema.get_field_index(name) < 0]
        if lacking:
            raise HarnessError(
                "dataset-feature-missing",
                f"{path} lacks columns that the metadata promises",
                got=", ".join(sorted(set(schema.names))),
                need=", ".join(lacking),
                fix=_anew(path, lacking)
                if set(lacking) <= set(BOOKKEEPING)
                else correct(
                    path,
                    "correct the features of meta/info.json, or map others in the recipe (data.state,"
                    " data.actions)",
                ),
            )
        if file.metadata.num_rows != sum(pieces):
            raise rows_mismatch(path, file.metadata.num_rows, sum(pieces))
        fields = [schema.field(name) for name in names]
        for field in fields:
            _check_numbers(path, field)
        with refusing(path):
            check_numbers(raw, file.metadata, names, fields)
        first = 0
        for n, table in enumerate(_tables(path, file, names, pieces, passed)):
            wanted = [] if n in passed else names
            yield {name: _numeric(path, name, table.column(name).combine_chunks(), first) for name in wanted}
            first += table.num_rows


def rows_mismatch(path: Path, found: int, rows: int) -> HarnessError:
    """The error for a file whose number of rows differs from the metadata."""
    hub = hub_of(path)
    fix = (
        another_copy(path)
        if hub
        else correct(
            path,
            f"correct meta/ to the {found} rows of {path.name}, or put back the file that meta/ describes",
        )
    )
    return HarnessError(
        "dataset-rows-mismatch",
        f"{path} does not have the rows that the metadata names",
        got=found,
        need=rows,
        fix=fix,
    )


def _tables(
    path: Path, file: Any, names: list[str], pieces: list[int], passed: Container[int]
) -> Iterator[Any]:
    """A table for each piece, validated unless it is passed over.

    A file of one piece is read at once. A larger file is read only as far as the next piece needs.
    """
    try:
        if len(pieces) == 1:
            batches = iter([file.read(columns=names, use_threads=False)])
        else:
            batches = (
                pa.Table.from_batches([batch])
                for batch in file.iter_batches(_BATCH_ROWS, columns=names, use_threads=False)
            )
        held = next(batches)
        for n, rows in enumerate(pieces):
            while held.num_rows < rows:
                held = pa.concat_tables([held, next(batches)])
            piece, held = held.slice(0, rows), held.slice(rows)
            if n not in passed:
                piece.validate(full=True)
            yield piece
    except StopIteration:
        raise corrupt(path, "it ends before its last row") from None
    except _DAMAGE as error:
        raise corrupt(path, error) from error


def _numeric(path: Path, name: str, array: Any, first: int, each: int = 1) -> np.ndarray:
    """The values of `array`, [N] or [N, D], whose first value belongs to row `first` of the file.

    Every row has `each` of its values. Lists in lists give the values of a row one after the other.
    """
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    rows = len(array)
    if array.null_count:
        at = first + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))) // each
        raise _invalid(path, name, f"row {at} {'is' if each == 1 else 'holds a'} null", row=True)
    if not _is_list(array.type):
        return _plain(path, name, array)
    lengths = np.asarray(array.value_lengths()) if rows else np.zeros(0, np.int64)
    if rows and (lengths != lengths[0]).any():
        at = first + int(np.argmax(lengths != lengths[0])) // each
        what = f"row {at} has another number of values than row {first}"
        raise _invalid(path, name, what, row=True)
    width = int(lengths[0]) if rows else 0
    # Of nothing there are no rows to tell.
    flat = _numeric(path, name, array.flatten(), first, max(each * width, 1))
    return flat.reshape(rows, -1) if flat.size else np.zeros((rows, 0), np.float32)


def _check_numbers(path: Path, field: Any) -> None:
    """Raises HarnessError unless a column holds one number per row, or a list of numbers per row.

    The type is checked before the column is read, because another type may unpack to any size.
    """
    kind = field.type
    for _ in range(MOST_AXES):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        kind = kind.value_type if _is_list(kind) else kind
    if not (is_number(kind) or pa.types.is_decimal(kind)):
        raise _invalid(path, field.name, f"holds {str(field.type)[:100]}, not numbers")


def _is_list(kind: Any) -> bool:
    """True if an Arrow type is a list of values, in any of Arrow's layouts."""
    layouts = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{layout}")(kind) for layout in layouts)


def is_number(kind: Any) -> bool:
    """True if an Arrow type is integer, floating or boolean."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _plain(path: Path, name: str, array: Any) -> np.ndarray:
    if pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    kind = array.type
    if not is_number(kind):
        raise _invalid(path, name, f"holds {kind}, not numbers")
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def _anew(path: Path, names: list[str]) -> str:
    """The fix for columns whose place no other feature can take, as LeRobot's own."""
    return f"write {', '.join(names)} of {path.name} as LeRobot's own writer does, in a copy of the dataset"


def _invalid(path: Path, name: str, what: str, *, row: bool = False, anew: bool = False) -> HarnessError:
    """The error for a column that holds no numbers, or with `row` for a single row of it that holds none.

    With `anew` the file must be written again, whatever the recipe names.
    """
    if row:
        fix = "repair that row in a copy of the dataset, or leave its episode out (data.episodes.exclude)"
    elif anew or name in BOOKKEEPING:
        fix = _anew(path, [name])
    else:
        fix = "map another feature in the recipe: --set data.state=FEATURE, --set data.actions=FEATURE"
    return HarnessError(
        "dataset-feature-invalid",
        f"{path}: column {name!r} cannot be read as numbers: {what}",
        need="one number, or a vector of one length, in every row",
        fix=fix,
    )
