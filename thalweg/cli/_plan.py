"""A whole problem, understood: the four choices and the run, checked against the library before it is computed."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

import thalweg as tw
from thalweg._check import check_combination
from thalweg._errors import UnsupportedCombination
from thalweg.cli import _catalogue as catalogue
from thalweg.cli._document import Document, Place
from thalweg.cli._errors import UsageError, nearest
from thalweg.cli._expressions import Call, Code, DataFile, Expression, Literal, Method, UserFunction, layout, quoted
from thalweg.cli._reading import Reader
from thalweg.cli._rows import TOLERANCES
from thalweg.energies import as_energy
from thalweg.problems import AbstractProblem, DensityProblem, RegressionProblem, TargetProblem, VectorProblem
from thalweg.problems._registry import _PROBLEMS

# What each kind of problem can start from, the usual one first: the state's name, the problem's method, and defaults.
_STARTS: dict[type[AbstractProblem], dict[str, str]] = {
    VectorProblem: {"Vector": "initial_state"},
    DensityProblem: {"GridDensity": "initial_state", "Gaussian": "initial_gaussian", "Particles": "initial_particles"},
    TargetProblem: {"Particles": "initial_state", "Gaussian": "initial_gaussian"},
    RegressionProblem: {"Parametric": "initial_parametric", "Vector": "initial_state"},
}
_CELLS = {1: 128, 2: 64, 3: 24}
_NUM_PARTICLES = 1000


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The table [run]."""

    num_steps: int | None
    final_time: float | None
    save_every: int
    seed: int
    precision: str
    stop: Any
    measure: Any
    checkpoint_seconds: float


_RUN_KEYS = tuple(field.name for field in dataclasses.fields(RunOptions))


def read_run_options(document: Document, seed: int | None = None) -> RunOptions:
    """The table [run], every key checked; `seed` wins over the one that the file names."""
    table, place = document.table("run"), document.place.inside("run")
    for key in table:
        if key not in _RUN_KEYS:
            raise place.error(f"there is no key `{key}`. {nearest(key, _RUN_KEYS)}")
    if ("num_steps" in table) == ("final_time" in table):
        given = "both are given" if "num_steps" in table else "neither is given"
        raise place.error(f"exactly one of `num_steps` and `final_time` must be given; {given}.")
    precision = table.get("precision", "float64")
    if precision not in ("float64", "float32"):
        raise place.error(f'`precision` must be "float64" or "float32"; got {precision!r}.')
    final_time = table.get("final_time")
    if final_time is not None:
        final_time = _positive(final_time, "final_time", place)
    return RunOptions(
        num_steps=_count(table["num_steps"], "num_steps", place) if "num_steps" in table else None,
        final_time=final_time,
        save_every=_count(table.get("save_every", 1), "save_every", place),
        seed=seed if seed is not None else _count(table.get("seed", 0), "seed", place, least=0),
        precision=precision,
        stop=table.get("stop"),
        measure=table.get("measure"),
        checkpoint_seconds=_positive(table.get("checkpoint_seconds", 10.0), "checkpoint_seconds", place),
    )


def _count(value: Any, name: str, place: Place, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise place.error(f"`{name}` must be a whole number, at least {least}; got {value!r}.")
    return value


def _positive(value: Any, name: str, place: Place) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise place.error(f"`{name}` must be a positive number; got {value!r}.")
    return float(value)


@contextlib.contextmanager
def precision_of(options: RunOptions) -> Iterator[None]:
    """JAX in the precision of the run, and afterwards as it was."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", options.precision == "float64")
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@dataclasses.dataclass(frozen=True)
class Choices:
    """The objects of a run, as `tw.flow` takes them, and the named problem, if there is one."""

    energy: Any
    state: Any
    geometry: Any
    scheme: Any
    options: dict[str, Any]
    problem: AbstractProblem | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a problem file asks for. Functions are named, but nothing of the user's has been imported."""

    document: Document
    options: RunOptions
    problem: "NamedProblem | None"
    energy: Expression
    state: Expression
    geometry: Expression
    scheme: Expression
    flow_options: dict[str, Expression]
    functions: tuple[UserFunction, ...]
    data_files: tuple[DataFile, ...]
    tolerances: dict[str, float]
    report: dict[str, Any]

    @property
    def title(self) -> str:
        """The title of the problem: the file's, the problem's, or the file's name."""
        if self.document.title:
            return self.document.title
        name = self.problem.name if self.problem is not None else self.document.stem
        return name.replace("_", " ").replace("-", " ").capitalize()

    def build(self) -> Choices:
        """Import the user's functions, make the objects, and check that they can be put together.

        **Raises:** `UsageError` with the table in which the mistake stands.
        """
        state, energy = self.state.value(), self.energy.value()
        geometry, scheme = self.geometry.value(), self.scheme.value()
        options = {name: expression.value() for name, expression in self.flow_options.items()}
        if scheme.needs_key or "seed" in self.document.table("run"):
            options["key"] = _keys(self.options.seed)[1]
        try:
            check_combination(as_energy(energy), state, geometry, scheme)
        except (UnsupportedCombination, ValueError, TypeError) as error:
            raise UsageError(f"{self.document.name}: {error}") from error
        # The problem's answers are for the problem's own energy.
        asked = self.problem is not None and not self.document.table("energy")
        problem = self.problem.value() if self.problem is not None and asked else None
        return Choices(energy, state, geometry, scheme, options, problem)

    def code(self) -> str:
        """The same run as a Python script."""
        code = Code()
        lines = [] if self.problem is None else [f"problem = {self.problem.definition(code)}"]
        drawn = [f"energy = {self.energy.code(code)}", f"state = {self.state.code(code)}"]
        options = {name: expression.code(code) for name, expression in self.flow_options.items()}
        needs_key = getattr(getattr(self.scheme, "function", None), "needs_key", False)
        if needs_key or "seed" in self.document.table("run"):
            options["key"] = "key"
        if "key" in options or "start_key" in drawn[1]:
            lines.append(f"start_key, key = jax.random.split(jax.random.key({self.options.seed}))")
        call = {"geometry": self.geometry.code(code), "scheme": self.scheme.code(code), **options}
        lines += [*drawn, layout("path = tw.flow", call, ("energy", "state"))]
        imports = ["import jax.numpy as jnp"] if any("jnp." in line for line in lines) else []
        imports += ["import thalweg as tw", *sorted(code.imports.values())]
        if any("diffrax." in line for line in lines):
            imports.insert(0, "import diffrax")
        head = ["import jax", f'\njax.config.update("jax_enable_x64", {self.options.precision == "float64"})\n']
        return "\n".join([*head, *imports, "", *lines, "print(path)", ""])


def make_plan(document: Document, options: RunOptions) -> Plan:
    """Read every table; call it inside `precision_of(options)`."""
    top = document.place
    reader = Reader(document.folder, _StartKey(options.seed))
    named = (
        _read_problem(document.table("problem"), top.inside("problem"), reader)
        if "problem" in document.tables
        else None
    )
    energy, state, geometry = _three_choices(document, reader, named)
    flow_options: dict[str, Expression] = {}
    for name in ("num_steps", "final_time", "save_every"):
        value = getattr(options, name)
        if value is not None and (name != "save_every" or value != 1):
            flow_options[name] = Literal(value)
    run = top.inside("run")
    if options.stop is not None:
        table = {"type": options.stop} if isinstance(options.stop, str) else options.stop
        if not isinstance(table, dict):
            raise run.error(
                f'`stop` must be a table such as {{ type = "Stationary", tolerance = 1e-8 }}; got {table!r}.'
            )
        flow_options["stop"] = reader.object(table, (tw.Stationary,), run.inside("stop"), "stop condition")
    if options.measure is not None:
        flow_options["measure"] = reader.function("measure", options.measure, run)
    return Plan(
        document,
        options,
        named,
        energy,
        state,
        geometry,
        reader.choice("scheme", document.table("scheme"), top.inside("scheme")),
        flow_options,
        tuple(reader.functions),
        tuple(reader.data_files),
        _read_tolerances(document, named),
        _read_report(document),
    )


def _three_choices(document: Document, reader: Reader, named: "NamedProblem | None") -> tuple[Expression, ...]:
    """Energy, state and geometry: the tables where they are there, and what the named problem says otherwise."""
    top = document.place
    tables = document.tables
    if named is None:
        return (
            reader.energy(tables["energy"], top.inside("energy")),
            reader.state(tables["state"], top.inside("state")),
            reader.choice("geometry", tables["geometry"], top.inside("geometry")),
        )
    problem = named.value()
    state, is_parametric = _start(problem, named, document.table("state"), top.inside("state"), reader)
    method = "statistical_energy" if is_parametric else "energy"
    energy: Expression = Call(Method(named, method), "", {}, top.inside("problem"))
    if "energy" in tables:
        energy = reader.energy(tables["energy"], top.inside("energy"))
    usual = "FisherRao" if is_parametric else "Euclidean"
    usual = "Wasserstein" if isinstance(problem, DensityProblem | TargetProblem) else usual
    geometry = reader.choice("geometry", document.table("geometry") or {"type": usual}, top.inside("geometry"))
    return energy, state, geometry


def _start(
    problem: AbstractProblem, named: "NamedProblem", table: dict[str, Any], place: Place, reader: Reader
) -> tuple[Expression, bool]:
    """Where a named problem starts: a method of the problem, unless the table says a state in full."""
    starts = next(methods for kind, methods in _STARTS.items() if isinstance(problem, kind))
    name = table.get("type", next(iter(starts)))
    keys = {key: value for key, value in table.items() if key != "type"}
    if name in starts:
        way = catalogue.constructor(getattr(problem, starts[name]), starts[name])
        full = catalogue.entries().get(name)
        elsewhere = full is not None and any(set(keys) >= made.required for made in full.constructors)
        if elsewhere and not set(keys) <= set(way.arguments):
            return reader.state(table, place), name == "Parametric"
        for key in keys:
            if key not in way.arguments:
                raise place.error(f"the start of `{named.name}` has no key `{key}`. {nearest(key, way.arguments)}")
        if "shape" in way.arguments:
            keys.setdefault("shape", _CELLS.get(getattr(problem, "dim", 1), 16))
        if "num_particles" in way.arguments:
            keys.setdefault("num_particles", _NUM_PARTICLES)
        arguments = {key: reader.argument(way.arguments[key], value, place) for key, value in keys.items()}
        if way.needs_key:
            arguments["key"] = reader.key
        return Call(Method(named, starts[name]), "", arguments, place), name == "Parametric"
    return reader.state(table, place), name == "Parametric"


def _read_problem(table: dict[str, Any], place: Place, reader: Reader) -> "NamedProblem":
    table = dict(table)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise place.error("needs a `name`; `thalweg problems` lists them.")
    if name not in _PROBLEMS:
        raise place.error(f"there is no problem named `{name}`. {nearest(name, _PROBLEMS)}")
    way = catalogue.constructor(_PROBLEMS[name], name)
    for key in table:
        if key not in way.arguments:
            hint = nearest(key, way.arguments) if way.arguments else "It takes none."
            raise place.error(f"`{name}` has no parameter `{key}`. {hint}")
    arguments = {key: reader.argument(way.arguments[key], value, place) for key, value in table.items()}
    return NamedProblem(name, Call(_PROBLEMS[name], name, arguments, place))


@dataclasses.dataclass(frozen=True, eq=False)
class NamedProblem(Expression):
    """A problem of `thalweg.problems`, built once; in code it is the variable `problem`."""

    name: str
    call: Call

    @functools.cached_property
    def _built(self) -> AbstractProblem:
        return self.call.value()

    def value(self) -> AbstractProblem:
        return self._built

    def code(self, code: Code) -> str:
        return "problem"

    def definition(self, code: Code) -> str:
        """The problem as Python."""
        arguments = {name: argument.code(code) for name, argument in self.call.arguments.items()}
        return layout("tw.problems.get", arguments, (quoted(self.name),))


@dataclasses.dataclass(frozen=True)
class _StartKey(Expression):
    """The random key with which the start is drawn."""

    seed: int

    def value(self) -> Any:
        return _keys(self.seed)[0]

    def code(self, code: Code) -> str:
        return "start_key"


def _keys(seed: int) -> Any:
    start_key, key = jax.random.split(jax.random.key(seed))
    return start_key, key


def _read_tolerances(document: Document, named: NamedProblem | None) -> dict[str, float]:
    table, place = document.table("tolerance"), document.place.inside("tolerance")
    if table and named is None:
        raise place.error("tolerances are for the known answers of a named problem; there is no [problem].")
    for key in table:
        if key not in TOLERANCES:
            raise place.error(f"there is no tolerance `{key}`. {nearest(key, TOLERANCES)}")
    return {**TOLERANCES, **{key: _positive(value, key, place) for key, value in table.items()}}


def _read_report(document: Document) -> dict[str, Any]:
    """What the table [report] says on the pictures: which two coordinates, their names, how many frames."""
    table, place = dict(document.table("report")), document.place.inside("report")
    for key in table:
        if key not in ("coordinates", "coordinate_names", "num_frames"):
            raise place.error(
                f"there is no key `{key}`. {nearest(key, ('coordinates', 'coordinate_names', 'num_frames'))}"
            )
    found: dict[str, Any] = {}
    if "coordinates" in table:
        chosen = table["coordinates"]
        if not isinstance(chosen, list) or len(chosen) != 2:
            raise place.error(f"`coordinates` must be two numbers, counted from zero; got {chosen!r}.")
        found["coordinates"] = tuple(_count(entry, "coordinates", place, least=0) for entry in chosen)
    if "coordinate_names" in table:
        names = table["coordinate_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise place.error(f"`coordinate_names` must be a list of texts, one for each coordinate; got {names!r}.")
        found["coordinate_names"] = names
    if "num_frames" in table:
        found["num_frames"] = _count(table["num_frames"], "num_frames", place)
    return found
