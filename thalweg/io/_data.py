"""Numbers from a file: one array of finite floats, or an error that says where the file is wrong."""

import csv
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIXES = (".csv", ".npy", ".npz", ".parquet")


def read_array(file: str | os.PathLike[str]) -> np.ndarray:
    """Read a CSV, NPY, NPZ or Parquet file as one floating-point array.

    **Arguments:** `file`: the file name; its suffix says what it is. A CSV is separated by commas and may begin with a
    row of names. An NPZ holds one array, or the array is named: `data.npz:name`. Nothing is unpickled.

    **Returns:** a NumPy array; of a table (CSV, Parquet) shape `(num_rows, num_columns)`. Single precision is kept,
    other numbers become float64.

    **Raises:** `FileNotFoundError`; `ImportError` if Parquet is asked for without `thalweg[parquet]`; `ValueError` for
    an unknown suffix, an empty file, rows of unequal length, or a cell that is not a finite number (it is named).
    """
    if not isinstance(file, str | os.PathLike):
        raise ValueError(f"`file` must be a file name; got {type(file).__name__}.")
    path, member = _split_member(os.fspath(file))
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"`{path}` has the suffix {suffix!r}; data is read from {', '.join(_SUFFIXES)}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no data file `{path}` (looked in `{Path.cwd()}`).")
    if path.stat().st_size == 0:
        raise ValueError(f"`{path}` is empty; it must hold at least one number.")
    match suffix:
        case ".csv":
            return _read_csv(path)
        case ".parquet":
            return _read_parquet(path)
        case _:
            return _checked(_read_numpy(path, member), path)


def _split_member(file: str) -> tuple[Path, str | None]:
    head, colon, member = file.rpartition(".npz:")
    return (Path(head + ".npz"), member) if colon else (Path(file), None)


def _read_csv(path: Path) -> np.ndarray:
    names: list[str] | None = None
    rows: list[list[float]] = []
    for line, cells in _csv_rows(path):
        if names is None and not rows and all(_number(cell) is None for cell in cells):
            names = cells
            continue
        expected = len(rows[0]) if rows else len(names or cells)
        if len(cells) != expected:
            raise ValueError(
                f"`{path}` must have the same number of cells in every row: row {line} has {len(cells)}, "
                f"the rows before it have {expected}."
            )
        rows.append([_cell(cell, path, line, column, names) for column, cell in enumerate(cells)])
    if not rows:
        raise ValueError(f"`{path}` holds no numbers" + (", only a row of names." if names else "."))
    return np.asarray(rows, np.float64)


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, with their line number in the file; a byte-order mark is dropped."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True, skipinitialspace=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"`{path}` is not a CSV file in UTF-8: {error}.") from error


def _number(cell: str) -> float | None:
    try:
        # Python reads 1_000 as a number; a table that holds it more likely means something else.
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _cell(cell: str, path: Path, line: int, column: int, names: list[str] | None) -> float:
    value = _number(cell)
    if value is not None and math.isfinite(value):
        return value
    called = f" ({names[column]!r})" if names else ""
    given = "is empty" if not cell else f"holds {cell[:40]!r}"
    raise ValueError(
        f"`{path}` must hold finite numbers: the cell in row {line}, column {column + 1}{called} {given}.\n"
        "Fill it in or drop the row; cells are separated by commas and decimals are written with a point."
    )


def _read_numpy(path: Path, member: str | None) -> np.ndarray:
    try:
        with open(path, "rb") as raw:
            loaded: Any = np.load(raw, allow_pickle=False)
            if isinstance(loaded, np.ndarray) and member is None:
                return loaded
            archive: Any = loaded
            if member is None and len(archive.files) != 1:
                raise _Told(
                    f"`{path}` holds the arrays {', '.join(archive.files) or '(none)'}; "
                    f"name one of them: `{path.name}:name`."
                )
            if member is not None and member not in archive.files:
                raise _Told(f"`{path}` has no array {member!r}; it holds {', '.join(archive.files) or 'none'}.")
            return archive[member or archive.files[0]]
    except _Told:
        raise
    except Exception as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else str(error)[:150]
        raise ValueError(
            f"`{path}` cannot be read as NumPy data: {reason}.\n"
            "Save it with `numpy.save` or `numpy.savez` as an array of numbers; nothing is unpickled."
        ) from error


class _Told(ValueError):
    """An error that already says what is wrong."""


def _read_parquet(path: Path) -> np.ndarray:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            f"Reading `{path}` needs pyarrow: run `pip install 'thalweg[parquet]'`, or save the data as CSV."
        ) from error
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"`{path}` cannot be read as Parquet: {str(error)[:150]}.") from error
    kinds = arrow.types
    for column in table.schema:
        kind = column.type
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_decimal(kind)):
            raise ValueError(f"`{path}` must hold numbers: the column {column.name!r} is of type {kind}.")
    if table.num_rows == 0 or table.num_columns == 0:
        raise ValueError(f"`{path}` is empty; it must hold at least one number.")
    columns = [column.cast(arrow.float64()).to_numpy() for column in table.columns]
    return _checked(np.stack(columns, axis=1), path, table.column_names)


def _checked(array: np.ndarray, path: Path, names: list[str] | None = None) -> np.ndarray:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"`{path}` must hold real numbers; got an array of dtype {array.dtype}.")
    if array.size == 0 or array.ndim == 0:
        raise ValueError(f"`{path}` must hold an array with at least one entry; got shape {array.shape}.")
    array = array if array.dtype.kind == "f" and array.dtype.itemsize in (4, 8) else array.astype(np.float64)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        where = f"row {place[0] + 1}, column {names[place[1]]!r}" if names else f"index {place}"
        raise ValueError(
            f"`{path}` must hold finite numbers: {len(bad)} of {array.size} are NaN, infinite or missing, "
            f"first at {where}.\nFill them in or drop them."
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)
