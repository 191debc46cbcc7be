"""A problem file: TOML whose tables are the four choices and the run, and where in it something stands."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from thalweg.cli._errors import UsageError, nearest

TABLES = ("problem", "energy", "state", "geometry", "scheme", "run", "tolerance", "report")


@dataclasses.dataclass(frozen=True)
class Place:
    """A table of a file; errors are said from here."""

    file: str
    table: str = ""

    def inside(self, name: str) -> "Place":
        """The place of a table within this one."""
        return Place(self.file, f"{self.table}.{name}" if self.table else name)

    def number(self, position: int) -> "Place":
        """The place of one table of an array of tables, counted from one."""
        return Place(self.file, f"{self.table}, number {position}")

    def error(self, message: str) -> UsageError:
        """The error that says the file, the table and what is wrong there."""
        return UsageError(f"{self}: {message}")

    def __str__(self) -> str:
        return f"{self.file}, [{self.table}]" if self.table else self.file


@dataclasses.dataclass(frozen=True)
class Document:
    """What a problem file says. `folder` is where its relative paths begin; `text` is the file as it was read."""

    name: str
    stem: str
    folder: Path
    text: str
    tables: dict[str, dict[str, Any]]
    title: str | None = None

    @property
    def place(self) -> Place:
        """The top of the file."""
        return Place(self.name)

    def table(self, name: str) -> dict[str, Any]:
        """One of the top tables; empty if it is not there."""
        return self.tables.get(name, {})


def read_document(path: Path, name: str | None = None) -> Document:
    """Read a problem file.

    **Raises:** `UsageError` if there is no such file, it is not TOML, or it has tables that a problem has not.
    """
    name = name or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        others = sorted(file.name for file in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise UsageError(f"There is no file {name}. {nearest(path.name, others)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name} cannot be read: {error}.") from None
    return parse_document(text, name=name, stem=path.stem, folder=path.resolve().parent)


def parse_document(text: str, *, name: str, stem: str, folder: Path) -> Document:
    """The document that a text spells."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f'{name} is not valid TOML: {error}.\nText stands in quotes, as in type = "KL".') from None
    place = Place(name)
    title = content.pop("title", None)
    if title is not None and not isinstance(title, str):
        raise place.error(f"`title` must be text; got {title!r}.")
    for key, value in content.items():
        if key not in TABLES:
            raise place.error(f"a problem has no table [{key}]. {nearest(key, TABLES)}")
        if not isinstance(value, dict):
            raise place.error(f"`{key}` must be a table, a line [{key}] followed by its keys; got {value!r}.")
    needed = ("scheme", "run") if "problem" in content else ("energy", "state", "geometry", "scheme", "run")
    for table in needed:
        if table not in content:
            raise place.error(
                f"the table [{table}] is missing. A problem has the tables {', '.join(f'[{name}]' for name in needed)}"
                + ("." if "problem" in content else ",\nor [problem] with a `name` instead of the first three.")
            )
    return Document(name, stem, folder, text, content, title)
