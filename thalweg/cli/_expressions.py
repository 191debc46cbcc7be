"""What a problem file means, as expressions that can be evaluated and that can be written as Python.

The objects that run and the Python code in the report come from the same expressions, so the one cannot differ from
the other.
"""

import contextlib
import csv
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thalweg._errors import UnsupportedCombination
from thalweg.cli._document import Place
from thalweg.cli._errors import UsageError, nearest

_LINE = 100


class Code:
    """Python lines being written: the imports that expressions ask for, by name."""

    def __init__(self) -> None:
        self.imports: dict[str, str] = {}

    def import_name(self, module: str, name: str, remark: str = "") -> str:
        """The name under which `module.name` can be used, imported once."""
        used = name
        while self.imports.get(used, "").partition("  #")[0] not in ("", _import_line(module, name, used)):
            used = f"{module.replace('.', '_')}_{used}"
        self.imports[used] = _import_line(module, name, used) + (f"  # {remark}" if remark else "")
        return used


def _import_line(module: str, name: str, used: str) -> str:
    return f"from {module} import {name}" + ("" if used == name else f" as {used}")


@dataclasses.dataclass(frozen=True)
class Expression:
    """A value that is not there yet."""

    def value(self) -> Any:
        """The value; computed when it is asked for."""
        raise NotImplementedError

    def code(self, code: Code) -> str:
        """The value as Python."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Literal(Expression):
    """A number, a text, a truth value, or a name whose value is known."""

    content: Any
    written: str | None = None

    def value(self) -> Any:
        return self.content

    def code(self, code: Code) -> str:
        return quoted(self.content) if self.written is None else self.written


@dataclasses.dataclass(frozen=True)
class Sequence(Expression):
    """Several values, as a tuple."""

    items: tuple[Expression, ...]

    def value(self) -> Any:
        return tuple(item.value() for item in self.items)

    def code(self, code: Code) -> str:
        inner = ", ".join(item.code(code) for item in self.items)
        return f"({inner},)" if len(self.items) == 1 else f"({inner})"


@dataclasses.dataclass(frozen=True)
class Tree(Expression):
    """Several values by name, as a dictionary."""

    items: dict[str, Expression]

    def value(self) -> Any:
        return {name: item.value() for name, item in self.items.items()}

    def code(self, code: Code) -> str:
        return "{" + ", ".join(f"{quoted(name)}: {item.code(code)}" for name, item in self.items.items()) + "}"


@dataclasses.dataclass(frozen=True)
class ArrayLiteral(Expression):
    """Numbers as an array of floats in the precision of the run."""

    numbers: Any
    place: Place
    key: str

    def value(self) -> Any:
        import jax.numpy as jnp
        import numpy as np

        try:
            return jnp.asarray(np.asarray(self.numbers, dtype=float))
        except (ValueError, TypeError):
            raise self.place.error(f"`{self.key}` must be numbers in rows of equal length.") from None

    def code(self, code: Code) -> str:
        return f"jnp.array({_floats(self.numbers)})"


def _floats(numbers: Any) -> str:
    if isinstance(numbers, list):
        return "[" + ", ".join(_floats(entry) for entry in numbers) + "]"
    return repr(float(numbers))


# What must keep its columns even if there is only one.
_ROWS_OF_POINTS = ("positions",)


@dataclasses.dataclass(frozen=True)
class DataFile(Expression):
    """The numbers in a file (CSV, NPY, NPZ or Parquet; nothing that could run code).

    `part` names a column of a table, or an array of an NPZ. A table with one column is a vector, except for positions.
    """

    reference: str
    path: Path
    part: str | None
    place: Place
    key: str

    def value(self) -> Any:
        import jax.numpy as jnp

        from thalweg.io import read_array

        try:
            numbers = read_array(f"{self.path}{self._member}")
            return jnp.asarray(numbers[self._columns(numbers.shape)], dtype=float)
        except (ValueError, OSError, TypeError, ImportError) as error:
            raise self.place.error(f"`{self.key}` could not be read:\n{error}") from None

    @property
    def _member(self) -> str:
        return f":{self.part}" if self.part and self.path.suffix.lower() == ".npz" else ""

    def _columns(self, shape: tuple[int, ...]) -> Any:
        """What is taken of the array: a column of a table by its name, or everything."""
        is_table = self.path.suffix.lower() in (".csv", ".parquet")
        if is_table and self.part is not None:
            names = _column_names(self.path)
            if self.part not in names:
                raise ValueError(f"`{self.reference}` has no column `{self.part}`. {nearest(self.part, names)}")
            column = names.index(self.part)
            return (slice(None), slice(column, column + 1) if self.key in _ROWS_OF_POINTS else column)
        return (slice(None), 0) if is_table and shape[1] == 1 and self.key not in _ROWS_OF_POINTS else (...,)

    def code(self, code: Code) -> str:
        read = f"{code.import_name('thalweg.io', 'read_array')}({quoted(self.reference + self._member)})"
        taken = self._columns(read_shape(self.path, self._member))
        if taken != (...,):
            columns = taken[1] if isinstance(taken[1], int) else f"{taken[1].start}:{taken[1].stop}"
            read += f"[:, {columns}]"
        return f"jnp.asarray({read}, dtype=float)"


def read_shape(path: Path, member: str) -> tuple[int, ...]:
    """The shape of the array in a data file."""
    from thalweg.io import read_array

    return read_array(f"{path}{member}").shape


def _column_names(path: Path) -> list[str]:
    """The names of the columns of a table."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(path).names)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return [name.strip() for name in next(csv.reader(lines), [])]


@dataclasses.dataclass(frozen=True)
class UserFunction(Expression):
    """A function of the user's, named `file.py:function` or `module:function`; reading it runs the file."""

    reference: str
    folder: Path
    place: Place
    key: str

    @property
    def path(self) -> Path | None:
        """The file, or `None` for an installed module."""
        module = self.reference.rpartition(":")[0]
        return (self.folder / module).resolve() if module.endswith(".py") else None

    @property
    def name(self) -> str:
        """The name of the function in its module."""
        return self.reference.rpartition(":")[2]

    def value(self) -> Any:
        module = self._module()
        function = getattr(module, self.name, None)
        if function is None:
            known = [name for name, thing in vars(module).items() if callable(thing) and not name.startswith("_")]
            source = self.reference.rpartition(":")[0]
            raise self.place.error(f"`{self.key}`: {source} has no `{self.name}`. {nearest(self.name, known)}")
        if not callable(function):
            raise self.place.error(f"`{self.key}`: `{self.reference}` must be a function; it is {function!r:.60}.")
        return function

    def _module(self) -> Any:
        source = self.reference.rpartition(":")[0]
        try:
            return import_file(self.path) if self.path is not None else importlib.import_module(source)
        except FileNotFoundError:
            raise self.place.error(f"`{self.key}`: there is no file {self.path}.") from None
        except ModuleNotFoundError as error:
            raise self.place.error(
                f"`{self.key}`: no module named `{error.name}` (asked for by `{self.reference}`).\n"
                "A file is named with its ending, as in `model.py:function`."
            ) from None
        except UsageError:
            raise
        except Exception as error:
            raise self.place.error(
                f"`{self.key}`: importing {source} failed:\n  {type(error).__name__}: {error}"
            ) from error

    def code(self, code: Code) -> str:
        source = self.reference.rpartition(":")[0]
        if self.path is None:
            return code.import_name(source, self.name)
        return code.import_name(self.path.stem, self.name, f"the file {source}, beside this script")


def import_file(path: Path) -> Any:
    """Run a Python file as a module, once; it may import its neighbours, as a script may."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _look_in(path.parent)
    known = _imported.get(path)
    if known is not None and known[0] == digest:
        return known[1]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and the like look their module up; an installed module of the same name is left in its place.
    before = sys.modules.get(path.stem)
    if before is None or any(before is ours for _, ours in _imported.values()):
        sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise
    _imported[path] = (digest, module)
    return module


_imported: dict[Path, tuple[str, Any]] = {}
_folders: list[str] = []


def _look_in(folder: Path) -> None:
    """Let imports find what lies in a folder; of two runs in one process the second sees its own neighbours."""
    if _folders and _folders[-1] == str(folder):
        return
    for last in _folders:
        with contextlib.suppress(ValueError):
            sys.path.remove(last)
        for name, module in list(sys.modules.items()):
            if os.path.dirname(getattr(module, "__file__", None) or "") == last:
                del sys.modules[name]
    _imported.clear()
    _folders[:] = [str(folder)]
    sys.path.append(str(folder))


@dataclasses.dataclass(frozen=True)
class Call(Expression):
    """A call of a class or function with keyword arguments; what it complains of is said with its place."""

    function: Callable[..., Any] | Expression
    written: str
    arguments: dict[str, Expression]
    place: Place

    def value(self) -> Any:
        function = self.function.value() if isinstance(self.function, Expression) else self.function
        arguments = {name: argument.value() for name, argument in self.arguments.items()}
        try:
            return function(**arguments)
        except UsageError:
            raise
        except (ValueError, TypeError, AttributeError, UnsupportedCombination) as error:
            raise self.place.error(str(error)) from error

    def code(self, code: Code) -> str:
        written = self.written
        if isinstance(self.function, Method):
            written = f"{self.function.owner.code(code)}.{self.function.name}"
        return layout(written, {name: argument.code(code) for name, argument in self.arguments.items()})


@dataclasses.dataclass(frozen=True)
class Method(Expression):
    """A method of a value."""

    owner: Expression
    name: str

    def value(self) -> Any:
        return getattr(self.owner.value(), self.name)


@dataclasses.dataclass(frozen=True)
class Total(Expression):
    """A sum of energies, each with a factor."""

    terms: tuple[tuple[float, Expression], ...]

    def value(self) -> Any:
        values = [energy.value() * scale if scale != 1 else energy.value() for scale, energy in self.terms]
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total

    def code(self, code: Code) -> str:
        parts = [
            f"{scale!r} * {energy.code(code)}" if scale != 1 else energy.code(code) for scale, energy in self.terms
        ]
        return " + ".join(parts)


def quoted(value: Any) -> str:
    """A value as Python writes it, text in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def layout(called: str, arguments: dict[str, str], positional: tuple[str, ...] = ()) -> str:
    """A call, on one line if it fits and else with one argument a line."""
    inner = [*positional, *(f"{name}={text}" for name, text in arguments.items())]
    short = f"{called}({', '.join(inner)})"
    if len(short) <= _LINE and "\n" not in short:
        return short
    lines = ",\n".join(inner).replace("\n", "\n    ")
    return f"{called}(\n    {lines},\n)"
