"""A path or a state in one file, without pickle: whole or not there, and read back to the last bit or not at all."""

import os
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from thalweg._errors import CheckpointError
from thalweg.io._sealed import read_sealed, write_sealed
from thalweg.io._structure import decode, encode

_KIND = "object"


def save(file: str | os.PathLike[str], obj: Any) -> None:
    """Write a [`thalweg.Path`][], a state, or any pytree of arrays, numbers and thalweg's classes to one file.

    The file is an npz of the arrays and a JSON header with the structure; it holds no code. It takes the place of an
    older one only when it is complete, so a failure leaves the older one untouched. Of functions (a model inside a
    family) the name alone is kept.

    **Arguments:** `file`: a file name, used as given; `obj`: what to save.

    **Raises:** [`thalweg.CheckpointError`][] if the file cannot be written, or part of `obj` cannot be saved.
    """
    file = _as_file(file)
    arrays: list[np.ndarray] = []
    root = encode(obj, arrays, type(obj).__name__.lower())
    write_sealed(file, {"kind": _KIND, "root": root}, arrays)


def load(file: str | os.PathLike[str]) -> Any:
    """Read back what `path.save(file)` or `thalweg.io.save(file, obj)` wrote, to the last bit.

    Nothing that the file names is imported or run. A function of the user comes back as a placeholder that says its
    name when it is called.

    **Arguments:** `file`: the file name.

    **Returns:** a [`thalweg.Path`][], or whatever was saved.

    **Raises:** [`thalweg.CheckpointError`][] if the file is missing, not one of thalweg's, cut short, or altered in any
    byte (a SHA-256 of the whole file is kept in it), or if it holds float64 and JAX is set to float32.
    """
    file = _as_file(file)
    header, arrays, _ = read_sealed(file, _KIND)
    try:
        return decode(header["root"], arrays)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(
            f"`{file}`, written by thalweg {header.get('thalweg')}, holds what this version does not know:\n"
            f"  {type(error).__name__}: {str(error)[:200]}\n"
            "Read it with the version that wrote it."
        ) from error


def _as_file(file: Any) -> FilePath:
    if not isinstance(file, str | os.PathLike) or not os.fspath(file):
        raise TypeError(f"`file` must be a file name; got {file!r}.")
    return FilePath(os.fspath(file))
