"""One file of arrays and a JSON header that knows whether it is whole.

It is an npz, readable by `numpy.load`: a zip of uncompressed `.npy` members, the first of which, `header`, holds JSON
as bytes. A zip has a CRC for each member but none for its own directory, so the last 64 bytes of the file (the end of
the zip's comment) are the SHA-256 of all the bytes before them. Nothing is pickled and nothing is run.
"""

import hashlib
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from thalweg._errors import CheckpointError
from thalweg.io._atomic import replacing

FORMAT_VERSION = 1
_MARK = b"thalweg-sha256:"
_DIGEST_LENGTH = 64
_BLOCK = 2**20
# Floating types of JAX that the npy format does not know.
_EXTENDED = (
    "bfloat16",
    "float8_e3m4",
    "float8_e4m3",
    "float8_e4m3b11fnuz",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
)


def version() -> str:
    """The version of this library."""
    # The package itself stands above this module and is not imported from here; it is there whenever this runs.
    return sys.modules["thalweg"].__version__


def write_sealed(file: Path, header: dict[str, Any], arrays: list[np.ndarray]) -> str:
    """Write header and arrays to `file`, atomically, and return the digest in hexadecimal."""
    header = {"format": FORMAT_VERSION, "thalweg": version(), **header, "dtypes": [a.dtype.name for a in arrays]}
    text = np.frombuffer(json.dumps(header, separators=(",", ":")).encode(), np.uint8)
    with replacing(file) as aside, open(aside, "xb+") as raw:
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_STORED) as archive:
            archive.comment = _MARK + b"0" * _DIGEST_LENGTH
            for name, array in [("header", text), *((_member(i), a) for i, a in enumerate(arrays))]:
                # A fixed date: equal content makes equal bytes.
                info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                with archive.open(info, "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, _plain(array), allow_pickle=False)
        digest = _digest(raw, raw.tell())
        raw.seek(-_DIGEST_LENGTH, os.SEEK_END)
        raw.write(digest.encode())
        raw.flush()
        os.fsync(raw.fileno())
    return digest


def read_sealed(file: Path, kind: str) -> tuple[dict[str, Any], list[np.ndarray], str]:
    """The header, the arrays and the digest of a file that [`write_sealed`][] wrote with `header["kind"] == kind`.

    **Raises:** [`thalweg.CheckpointError`][] if the file is missing, foreign, cut short or altered in any byte.
    """
    try:
        with open(file, "rb") as raw:
            digest = _check_whole(raw, file)
            header, arrays = _read_members(raw)
    except OSError as error:
        raise CheckpointError(
            f"`{file}` could not be read: {error.strerror or error}.\nCheck the name and the rights."
        ) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, RecursionError, MemoryError) as error:
        raise _foreign(file, f"its content cannot be read ({type(error).__name__}: {str(error)[:100]})") from error
    if header["format"] > FORMAT_VERSION:
        raise CheckpointError(
            f"`{file}` has format {header['format']}, written by thalweg {header.get('thalweg')}; "
            f"this version reads up to format {FORMAT_VERSION}.\nUpgrade thalweg to read it."
        )
    if header.get("kind") != kind:
        raise _foreign(file, f"it is of the kind {header.get('kind')!r}, not {kind!r}")
    return header, arrays, digest


def _read_members(raw: BinaryIO) -> tuple[dict[str, Any], list[np.ndarray]]:
    with zipfile.ZipFile(raw) as archive:
        header = json.loads(_read_member(archive, "header").tobytes())
        if not isinstance(header, dict) or not isinstance(header.get("format"), int):
            raise ValueError("no header")
        dtypes = header.get("dtypes", [])
        arrays = [_unplain(_read_member(archive, _member(i)), name) for i, name in enumerate(dtypes)]
        if len(archive.namelist()) != 1 + len(arrays):
            raise ValueError("the header does not name every member")
    return header, arrays


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a member is compressed")
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        # The CRC is compared when the end is reached.
        if member.read(1):
            raise ValueError("a member is longer than its array")
    return array


def _check_whole(raw: BinaryIO, file: Path) -> str:
    size = raw.seek(0, os.SEEK_END)
    tail = len(_MARK) + _DIGEST_LENGTH
    if size == 0:
        raise _foreign(file, "it is empty")
    if size >= tail:
        raw.seek(-tail, os.SEEK_END)
    if size < tail or raw.read(len(_MARK)) != _MARK:
        raise _foreign(file, "the mark at its end is missing")
    kept = raw.read(_DIGEST_LENGTH)
    digest = _digest(raw, size)
    if digest.encode() != kept:
        raise CheckpointError(
            f"`{file}` is damaged: its content does not agree with the SHA-256 that it holds.\n"
            "Nothing was read from it. Take a copy from elsewhere, or run the flow again."
        )
    raw.seek(0)
    return digest


def _digest(raw: BinaryIO, size: int) -> str:
    """SHA-256 of everything before the digest itself."""
    raw.seek(0)
    sha = hashlib.sha256()
    left = size - _DIGEST_LENGTH
    while left:
        block = raw.read(min(_BLOCK, left))
        if not block:
            raise EOFError("the file ends early")
        sha.update(block)
        left -= len(block)
    return sha.hexdigest()


def _foreign(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"`{file}` is not a whole file written by thalweg: {why}.\n"
        "Nothing was read from it. Expected a file of `path.save(file)` or of a checkpoint; if it was one, it was cut\n"
        "short or altered: take a copy from elsewhere, or run the flow again."
    )


def _member(index: int) -> str:
    return f"leaf_{index:06d}"


def _plain(array: np.ndarray) -> np.ndarray:
    """The array in a dtype that the npy format knows: bfloat16 and its relatives travel as integers."""
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.name in _EXTENDED else array


def _unplain(array: np.ndarray, name: str) -> np.ndarray:
    if name in _EXTENDED and array.dtype.kind == "u":
        return array.view(np.dtype(getattr(ml_dtypes, name)))
    if array.dtype.name != name:
        raise ValueError(f"an array of dtype {array.dtype.name} is named {str(name)[:40]}")
    return array
