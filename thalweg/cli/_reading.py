"""From a table to the expression that it means.

Names and keys are those of the constructors, and what a key may hold is what the annotation of the argument says.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from thalweg import generators
from thalweg.cli import _catalogue as catalogue
from thalweg.cli._catalogue import Argument, Constructor, Entry
from thalweg.cli._document import Place
from thalweg.cli._errors import nearest
from thalweg.cli._expressions import (
    ArrayLiteral,
    Call,
    DataFile,
    Expression,
    Literal,
    Sequence,
    Total,
    Tree,
    UserFunction,
)

DATA_ENDINGS = (".csv", ".npy", ".npz", ".parquet")
# `data.csv:column` is one column of a table, `data.npz:name` one array of several.
_DATA = re.compile(r"(?P<file>.+\.(?:csv|npy|npz|parquet))(?::(?P<part>.+))?", re.IGNORECASE)
# Names of the README that differ from the argument's.
_ALIASES = {"function": "fn"}


@dataclasses.dataclass
class Reader:
    """Reads the tables of one file; functions and data files that they name are gathered.

    `key` is the expression of the random key of the start.
    """

    folder: Path
    key: Expression
    functions: list[UserFunction] = dataclasses.field(default_factory=list)
    data_files: list[DataFile] = dataclasses.field(default_factory=list)

    def energy(self, table: dict[str, Any], place: Place) -> Expression:
        """An energy, a sum of `terms`, or a plain `function` of a vector."""
        if "terms" in table:
            _only(table, ("terms",), place, "A sum of energies")
            terms = table["terms"]
            if not isinstance(terms, list) or not terms or not all(isinstance(term, dict) for term in terms):
                raise place.error("`terms` must be tables, each under a line [[energy.terms]].")
            return Total(tuple(self._term(dict(term), place, i + 1) for i, term in enumerate(terms)))
        if table.get("type", "Function") == "Function" and "function" in table:
            _only(table, ("type", "function"), place, "A function of a vector")
            return self.function("function", table["function"], place)
        if "type" not in table and "function" not in table:
            raise place.error('needs a `type`, such as type = "KL", or `terms`, or a `function` of a vector.')
        return self.choice("energy", table, place)

    def _term(self, term: dict[str, Any], place: Place, position: int) -> tuple[float, Expression]:
        inside = place.inside("terms").number(position)
        scale = term.pop("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float):
            raise inside.error(f"`scale` must be a number; got {scale!r}.")
        return float(scale), self.energy(term, inside)

    def state(self, table: dict[str, Any], place: Place) -> Expression:
        """A state, or a `Vector` with its `value`."""
        if table.get("type") == "Vector":
            _only(table, ("type", "value"), place, "`Vector`")
            if "value" not in table:
                raise place.error("`Vector` needs `value`: numbers, a data file, or a table of them.")
            return self.tree("value", table["value"], place)
        return self.choice("state", table, place)

    def choice(self, role: str, table: dict[str, Any], place: Place) -> Expression:
        """One of the four choices, by its `type`."""
        kinds = catalogue.ROLES[role]
        if "type" not in table:
            names = sorted(catalogue.candidates(kinds))
            raise place.error(f"needs a `type`. There is: {', '.join(names + _EXTRA_NAMES.get(role, []))}.")
        return self.object(table, kinds, place, role)

    def object(self, table: dict[str, Any], kinds: tuple[Any, ...], place: Place, what: str) -> Expression:
        """An object of one of the given kinds; `type` may be left out where only one class fits the place, or
        the keys."""
        known = catalogue.candidates(kinds)
        table = dict(table)
        name = table.pop("type", None)
        if name is None:
            fits = [name for name, entry in known.items() if any(_fits(way, table) for way in entry.constructors)]
            if len(known) != 1 and len(fits) != 1:
                raise place.error(f"needs a `type`. {nearest('', sorted(known))}")
            name = fits[0] if fits else next(iter(known))
        if not isinstance(name, str):
            raise place.error(f"`type` must be a name in quotes; got {name!r}.")
        entry = known.get(name.partition(".")[0])
        if entry is None:
            raise place.error(_unknown_name(name, what, known))
        return self.call(entry, name, table, place)

    def call(self, entry: Entry, name: str, table: dict[str, Any], place: Place) -> Expression:
        """The constructor of an entry that fits the keys of a table, called with them."""
        ways = entry.constructors
        if "." in name:
            ways = tuple(way for way in ways if way.written.endswith(f".{name}"))
            if not ways:
                written = [way.written.removeprefix("tw.") for way in entry.constructors]
                raise place.error(f"there is no `{name}`. {nearest(name, written)}")
        table = {_alias(key, ways): value for key, value in table.items()}
        best = min(ways, key=lambda way: (len(set(table) - set(way.arguments)), len(way.required - set(table))))
        for key in table:
            if key not in best.arguments:
                takes = list(dict.fromkeys(name for way in ways for name in way.arguments))
                hint = nearest(key, takes) if takes else "It takes no keys."
                raise place.error(f"`{entry.name}` has no key `{key}`" + _at_once(key, table, ways) + f". {hint}")
        if best.required - set(table):
            raise place.error(_missing(entry, best, ways, set(table)))
        arguments = {key: self.argument(best.arguments[key], value, place) for key, value in table.items()}
        if best.needs_key:
            arguments["key"] = self.key
        return Call(best.function, best.written, arguments, place)

    def argument(self, argument: Argument, value: Any, place: Place) -> Expression:
        """The value of one key, by what the annotation of the argument allows."""
        name, kinds = argument.name, argument.kinds
        anything = any(kind is Any for kind in kinds)
        if name == "generator":
            return self._generator(value, place)
        if any(catalogue.is_tree(kind) for kind in kinds):
            return self.tree(name, value, place)
        if isinstance(value, dict):
            if anything or catalogue.candidates(kinds):
                return self.object(value, kinds, place.inside(name), name)
        elif isinstance(value, str):
            found = self._text(name, value, kinds, anything, place)
            if found is not None:
                return found
        elif isinstance(value, list):
            items = catalogue.item_kinds(kinds)
            if items:
                each = Argument(name, items, True)
                return Sequence(tuple(self.argument(each, item, place) for item in value))
            if anything or any(catalogue.is_array(kind) for kind in kinds):
                return ArrayLiteral(value, place, name)
        elif isinstance(value, bool):
            if bool in kinds or anything:
                return Literal(value)
        elif isinstance(value, int | float):
            if float in kinds or anything:
                return Literal(float(value) if float in kinds else value)
            if int in kinds and isinstance(value, int):
                return Literal(value)
            if any(catalogue.is_array(kind) for kind in kinds):
                return ArrayLiteral(value, place, name)
        raise place.error(f"`{name}` must be {_wanted(kinds)}; got {_shown(value)}.")

    def _text(self, name: str, value: str, kinds: tuple[Any, ...], anything: bool, place: Place) -> Expression | None:
        if any(catalogue.is_function(kind) for kind in kinds):
            return self.function(name, value, place)
        if (any(catalogue.is_array(kind) for kind in kinds) and float not in kinds) or (
            anything and _DATA.fullmatch(value)
        ):
            return self.data(name, value, place)
        if str in kinds:
            return Literal(value)
        if anything and ":" in value:
            return self.function(name, value, place)
        if catalogue.candidates(kinds):
            return self.object({"type": value}, kinds, place.inside(name), name)
        return None

    def _generator(self, value: Any, place: Place) -> Expression:
        """The generator of an f-divergence: one of the library's by name, `alpha` with its exponent, or a function."""
        if isinstance(value, str) and ":" in value:
            return self.function("generator", value, place)
        if isinstance(value, str):
            if value not in generators.KNOWN:
                raise place.error(f"there is no generator `{value}`. {nearest(value, generators.KNOWN)}")
            return Literal(generators.KNOWN[value], f"tw.generators.{value}")
        exponent = value.get("exponent") if isinstance(value, dict) else None
        if isinstance(value, dict) and value.get("type") == "alpha" and isinstance(exponent, int | float):
            _only(value, ("type", "exponent"), place.inside("generator"), "`alpha`")
            return Call(
                generators.alpha,
                "tw.generators.alpha",
                {"exponent": Literal(float(exponent))},
                place.inside("generator"),
            )
        raise place.error(
            '`generator` must be the name of one, a function, or { type = "alpha", exponent = 0.5 }; '
            f"got {_shown(value)}."
        )

    def tree(self, name: str, value: Any, place: Place) -> Expression:
        """An array from numbers or a file, or a table of such by name."""
        if isinstance(value, dict):
            return Tree({key: self.tree(f"{name}.{key}", entry, place) for key, entry in value.items()})
        if isinstance(value, str):
            return self.data(name, value, place)
        if isinstance(value, bool) or not isinstance(value, int | float | list):
            raise place.error(f"`{name}` must be numbers, a data file, or a table of them; got {_shown(value)}.")
        return ArrayLiteral(value, place, name)

    def data(self, name: str, value: str, place: Place) -> DataFile:
        """A data file, relative to the problem file."""
        named = _DATA.fullmatch(value)
        if named is None:
            raise place.error(f"`{name}` must be numbers or a data file ({', '.join(DATA_ENDINGS)}); got {value!r}.")
        path = (self.folder / named["file"]).resolve()
        if not path.is_file():
            near = [file.name for file in path.parent.glob("*") if file.suffix in DATA_ENDINGS]
            raise place.error(f"`{name}`: there is no file {path}. {nearest(path.name, near)}")
        found = DataFile(named["file"], path, named["part"], place, name)
        self.data_files.append(found)
        return found

    def function(self, name: str, value: Any, place: Place) -> UserFunction:
        """A function of the user's, by name; nothing is imported yet."""
        module, colon, function = value.rpartition(":") if isinstance(value, str) else ("", "", "")
        if not (colon and module and function.isidentifier()):
            raise place.error(
                f'`{name}` must name a function as "file.py:function" or "module:function"; got {_shown(value)}.'
            )
        found = UserFunction(value, self.folder, place, name)
        if found.path is not None and not found.path.is_file():
            near = [file.name for file in found.path.parent.glob("*.py")] if found.path.parent.is_dir() else []
            raise place.error(f"`{name}`: there is no file {found.path}. {nearest(found.path.name, near)}")
        self.functions.append(found)
        return found


_EXTRA_NAMES = {"state": ["Vector"], "energy": ["Function"]}


def _fits(way: Constructor, table: dict[str, Any]) -> bool:
    """Whether a constructor takes just these keys."""
    return way.required <= set(table) <= set(way.arguments)


def _only(table: dict[str, Any], keys: tuple[str, ...], place: Place, what: str) -> None:
    for key in table:
        if key not in keys:
            raise place.error(f"{what} has no key `{key}`. {nearest(key, keys)}")


def _alias(key: str, ways: tuple[Constructor, ...]) -> str:
    other = _ALIASES.get(key)
    known = {name for way in ways for name in way.arguments}
    return other if other is not None and key not in known and other in known else key


def _at_once(key: str, table: dict[str, Any], ways: tuple[Constructor, ...]) -> str:
    """A word more, where the key is right but for another way of making the object."""
    if not any(key in way.arguments for way in ways):
        return ""
    return " beside " + " and ".join(f"`{other}`" for other in table if other != key)


def _missing(entry: Entry, best: Constructor, ways: tuple[Constructor, ...], given: set[str]) -> str:
    names = ", ".join(f"`{name}`" for name in best.arguments if name in best.required - given)
    takes = ["; or ".join(", ".join(way.arguments) for way in ways)]
    return (
        f"`{entry.name}` needs {names}, which {'is' if names.count(',') == 0 else 'are'} missing. It takes: {takes[0]}."
    )


def _unknown_name(name: str, what: str, known: dict[str, Entry]) -> str:
    role = catalogue.role_of(name.partition(".")[0])
    article = "an" if what[0] in "aeiou" else "a"
    text = f"there is no {what} named `{name}`."
    if role is not None and role != what:
        return (
            f"`{name}` is {'an' if role[0] == 'e' else 'a'} {role}, not {article} {what}. {nearest('', sorted(known))}"
        )
    return f"{text} {nearest(name, sorted(known) + _EXTRA_NAMES.get(what, []))}"


def _wanted(kinds: tuple[Any, ...]) -> str:
    words = []
    if float in kinds:
        words.append("a number")
    elif int in kinds:
        words.append("a whole number")
    if bool in kinds:
        words.append("true or false")
    if any(catalogue.is_array(kind) for kind in kinds) and float not in kinds:
        words.append("numbers or a data file")
    if any(catalogue.is_function(kind) for kind in kinds):
        words.append('a function as "file.py:function"')
    if catalogue.item_kinds(kinds):
        words.append("a list")
    names = sorted(catalogue.candidates(kinds)) if Any not in kinds else []
    if names:
        words.append(f"a table with type = {' or '.join(repr(name) for name in names[:6])}")
    return " or ".join(words) or "something else"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
