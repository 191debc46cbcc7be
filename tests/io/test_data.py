"""Numbers are read from a file, or the error says where the file is wrong."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thalweg.io import read_array

TABLE = np.asarray([[1.0, -2.5e-3], [0.1, 4.0], [5.0, 6.0]])


def parquet(file: Path, columns: dict[str, Any]) -> None:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as writer

    writer.write_table(arrow.table(columns), file)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "table.csv": lambda file: file.write_text("1,-2.5e-3\n0.1,4\n5,6\n"),
    "named.csv": lambda file: file.write_text("height,width\n1,-2.5e-3\n0.1,4\n5,6"),
    "quoted.csv": lambda file: file.write_bytes(
        b'\xef\xbb\xbf"a, b", "c"\r\n"1", -0.0025\r\n\r\n 0.1 , +4.\r\n5e0,6\r\n'
    ),
    "table.npy": lambda file: np.save(file, TABLE),
    "fortran.npy": lambda file: np.save(file, np.asfortranarray(TABLE)),
    "foreign.npy": lambda file: np.save(file, TABLE.astype(">f8")),
    "table.npz": lambda file: np.savez(file, anything=TABLE),
    "table.parquet": lambda file: parquet(file, {"a": TABLE[:, 0], "b": TABLE[:, 1]}),
    "UPPER.CSV": lambda file: file.write_text("1,-2.5e-3\n0.1,4\n5,6\n"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_read_exactly(name: str, tmp_path: Path):
    WRITERS[name](tmp_path / name)
    for file in (tmp_path / name, str(tmp_path / name)):
        table = read_array(file)
        assert table.dtype == np.float64
        assert table.dtype.isnative
        assert np.array_equal(table, TABLE)


def test_one_column_is_still_a_table(tmp_path: Path):
    (tmp_path / "x.csv").write_text("x\n1\n2\n")
    assert read_array(tmp_path / "x.csv").tolist() == [[1.0], [2.0]]


def test_an_array_of_several_is_read_by_its_name(tmp_path: Path):
    np.savez(tmp_path / "data.npz", a=TABLE, b=np.arange(3))
    assert read_array(f"{tmp_path}/data.npz:b").tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match=r"holds the arrays a, b; name one of them: `data.npz:name`"):
        read_array(tmp_path / "data.npz")
    with pytest.raises(ValueError, match="has no array 'c'; it holds a, b"):
        read_array(f"{tmp_path}/data.npz:c")


@pytest.mark.parametrize(("dtype", "expected"), [("f4", "f4"), ("f2", "f8"), ("i4", "f8"), ("?", "f8"), ("u1", "f8")])
def test_single_precision_is_kept_and_other_numbers_become_double(dtype: str, expected: str, tmp_path: Path):
    np.save(tmp_path / "x.npy", np.asarray([0, 1], dtype))
    array = read_array(tmp_path / "x.npy")
    assert array.dtype == np.dtype(expected)
    assert array.tolist() == [0.0, 1.0]


def test_parquet_columns_of_any_number_type_are_read(tmp_path: Path):
    import decimal

    columns = {"i": [1, 2], "b": [True, False], "d": [decimal.Decimal("0.5"), decimal.Decimal("1.5")]}
    parquet(tmp_path / "x.parquet", columns)
    assert read_array(tmp_path / "x.parquet").tolist() == [[1, 1, 0.5], [2, 0, 1.5]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "`.*x.csv` is empty"),
        ("\n \n", "holds no numbers"),
        ("a,b\n", "holds no numbers, only a row of names"),
        ("1,2\n3\n", "row 2 has 1, the rows before it have 2"),
        ("a,b\n1,2,3\n", "row 2 has 3, the rows before it have 2"),
        ("a,b\n1,2\n3,x\n", r"row 3, column 2 \('b'\) holds 'x'"),
        ("1,2\n3,x\n", "row 2, column 2 holds 'x'"),
        ("1,b\n3,4\n", "row 1, column 2 holds 'b'"),
        ("1,2\n\n3,\n", "row 3, column 2 is empty"),
        ("1,2\n3,nan\n", "row 2, column 2 holds 'nan'"),
        ("1,2\n-inf,4\n", "row 2, column 1 holds '-inf'"),
        ("1;2\n3;4\n1\n", r"row 2, column 1 \('1;2'\) holds '3;4'.\n.*separated by commas"),
        ("1,5\n1_000,2\n", "row 2, column 1 holds '1_000'"),
        ('1,2\n"3,4\n', "is not a CSV file"),
    ],
)
def test_a_wrong_csv_is_told_with_its_place(text: str, complaint: str, tmp_path: Path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint) as raised:
        read_array(tmp_path / "x.csv")
    assert "x.csv" in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 5


def test_bytes_that_are_no_text_are_told(tmp_path: Path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe1\x00,\x002\x00")
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8"):
        read_array(tmp_path / "x.csv")


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize(
    ("write", "complaint"),
    [
        (lambda file: np.save(file, np.asarray([Bomb()], object)), "holds Python objects.*\n.*nothing is unpickled"),
        (lambda file: np.save(file, np.asarray(["a"])), "real numbers; got an array of dtype <U1"),
        (lambda file: np.save(file, np.asarray([1j])), "real numbers; got an array of dtype complex128"),
        (lambda file: np.save(file, np.zeros((0, 3))), r"at least one entry; got shape \(0, 3\)"),
        (lambda file: np.save(file, np.float64(1)), r"at least one entry; got shape \(\)"),
        (lambda file: np.save(file, [[1, np.nan], [np.inf, 2]]), r"2 of 4 are NaN, infinite .*first at index \(0, 1\)"),
        (lambda file: file.write_bytes(b"not numpy"), "cannot be read as NumPy data"),
        (lambda file: file.write_bytes(b"\x93NUMPY\x01\x00"), "cannot be read as NumPy data"),
    ],
)
def test_a_wrong_npy_is_told_and_runs_nothing(
    write: Callable[[Path], Any], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=complaint) as raised:
        read_array(tmp_path / "x.npy")
    assert "x.npy" in str(raised.value)
    assert os.listdir(tmp_path) == ["x.npy"]


def test_a_wrong_npz_is_told(tmp_path: Path):
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"holds the arrays \(none\)"):
        read_array(tmp_path / "none.npz")
    np.savez(tmp_path / "cut.npz", x=np.arange(100.0))
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:300])
    with pytest.raises(ValueError, match="cannot be read as NumPy data"):
        read_array(tmp_path / "cut.npz")
    (tmp_path / "cut.npz").write_bytes(content[:400] + bytes([content[400] ^ 1]) + content[401:])
    with pytest.raises(ValueError, match="cannot be read as NumPy data.*CRC"):
        read_array(tmp_path / "cut.npz")


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"a": [1.0, 2.0], "b": ["x", "y"]}, "the column 'b' is of type"),
        ({"a": [1.0, None]}, "1 of 2 are NaN, infinite or missing, first at row 2, column 'a'"),
        ({"a": [1, None]}, "first at row 2, column 'a'"),
        ({"a": np.zeros(0)}, "is empty"),
        ({}, "is empty"),
    ],
)
def test_a_wrong_parquet_file_is_told(columns: dict[str, Any], complaint: str, tmp_path: Path):
    parquet(tmp_path / "x.parquet", columns)
    with pytest.raises(ValueError, match=complaint):
        read_array(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not so")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_array(tmp_path / "x.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'thalweg\[parquet\]'"):
        read_array(tmp_path / "x.parquet")


def test_a_file_that_is_not_there_or_of_no_known_kind_is_told(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="There is no data file `.*no.csv`"):
        read_array(tmp_path / "no.csv")
    with pytest.raises(FileNotFoundError, match="There is no data file `.*no.npz`"):
        read_array(f"{tmp_path}/no.npz:x")
    (tmp_path / "dir.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no data file"):
        read_array(tmp_path / "dir.csv")
    with pytest.raises(ValueError, match=r"has the suffix '.xlsx'; data is read from .csv, .npy, .npz, .parquet"):
        read_array(tmp_path / "x.xlsx")
    with pytest.raises(ValueError, match="has the suffix ''"):
        read_array(tmp_path / "x")
