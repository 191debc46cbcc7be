"""The house stands as DESIGN.md draws it: imports point down, modules are short and say what they are."""

import ast
import graphlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "thalweg"
MAX_LINES = 450

# From the ground up: a module imports from its own row of this table and from the rows before it, never a later one.
# A new folder or root module must be placed here on purpose.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("_types", "_tree", "_sums", "_errors", "_result", "_shapes", "_compiled", "_saves", "_packing", "_sharding"),
    ("states", "energies", "generators", "kernels", "targets", "likelihoods"),
    ("_first_variation",),
    ("diagnostics", "transport", "geometries"),
    ("schemes",),
    (
        "_check",
        "_measure",
        "_path",
        "_advance",
        "_chunks",
        "_fingerprint",
        "_interrupt",
        "_loop",
        "_flow",
        "_launch",
        "_rollout",
    ),
    ("recipes", "interop", "plotting", "io", "problems"),
    ("",),  # thalweg/__init__.py, the flat public names
    ("cli", "explorer", "__main__"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}

# The stated exception: convenience methods that reach up when they are called, and only then.
LAZY_UPWARD = {("_path", "plotting"), ("_path", "io")}


@dataclass(frozen=True)
class Import:
    """One import of the package by itself. `lazy`: inside a function; `typing_only`: under `if TYPE_CHECKING`."""

    importer: str
    imported: str
    line: int
    lazy: bool
    typing_only: bool


def dotted_modules(package: Path) -> dict[str, Path]:
    """Every module by its name below the package; the package's own `__init__` is the empty name."""
    modules = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return modules


def imports_of(name: str, file: Path, modules: dict[str, Path], package_name: str) -> Iterator[Import]:
    """The imports of the package in one of its modules, as names of modules that exist."""
    inside = name if file.name == "__init__.py" else name.rpartition(".")[0]

    def within_package(node: ast.AST) -> Iterator[str]:
        """The dotted names below the package that the statement asks for."""
        match node:
            case ast.Import(names=aliases):
                absolute = [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=0):
                absolute = [f"{module}.{alias.name}" for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                parents = [package_name, *filter(None, inside.split("."))]
                base = parents[: len(parents) - level + 1] + ([module] if module else [])
                absolute = [".".join([*base, alias.name]) for alias in aliases]
            case ast.Call(
                func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=str(asked)), *_]
            ):
                absolute = [asked] if called in ("import_module", "__import__") else []
            case _:
                absolute = []
        for asked in absolute:
            first, _, rest = asked.partition(".")
            if first == package_name:
                yield rest

    def existing(asked: str) -> str:
        """The longest prefix that is a module: the rest are names in it. Folders count even without `__init__`."""
        if "." not in asked:
            return asked if asked in modules else ""
        while asked not in modules and "." in asked:
            asked = asked.rpartition(".")[0]
        return asked

    def walk(node: ast.AST, lazy: bool, typing_only: bool) -> Iterator[Import]:
        for asked in within_package(node):
            yield Import(name, existing(asked), getattr(node, "lineno", 0), lazy, typing_only)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy = True
        for child in ast.iter_child_nodes(node):
            in_body = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and child in node.body
            yield from walk(child, lazy, typing_only or in_body)

    yield from walk(ast.parse(file.read_text()), lazy=False, typing_only=False)


def top(name: str) -> str:
    return name.partition(".")[0]


def violations(package: Path) -> list[str]:
    """Each way in which the package's imports break the rule, in words."""
    modules = dotted_modules(package)
    found = [f"{name!r} has no layer: place it in LAYERS" for name in sorted({top(m) for m in modules} - set(HEIGHT))]
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, file in modules.items():
        for entry in imports_of(name, file, modules, package.name):
            here, there = top(entry.importer), top(entry.imported)
            if here not in HEIGHT or there not in HEIGHT:
                continue
            allowed = entry.lazy and (here, there) in LAZY_UPWARD
            if HEIGHT[there] > HEIGHT[here] and not allowed:
                how = "lazily imports" if entry.lazy else "imports"
                found.append(f"{name or package.name}:{entry.line} {how} {entry.imported or package.name} from above")
            if entry.imported in modules and not entry.lazy and not entry.typing_only:
                graph[name].add(entry.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append("import cycle: " + " <- ".join(module or package.name for module in error.args[1]))
    return found


def test_imports_point_down_only():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (
            {"states/base.py": "from thalweg.schemes import explicit"},
            "states.base:1 imports schemes.explicit from above",
        ),
        ({"states/base.py": "import thalweg.schemes.explicit"}, "states.base:1 imports schemes.explicit from above"),
        (
            {"states/base.py": "from ..schemes.explicit import Explicit"},
            "states.base:1 imports schemes.explicit from above",
        ),
        ({"states/base.py": "from .. import schemes"}, "states.base:1 imports schemes from above"),
        ({"states/__init__.py": "from ..schemes import Explicit"}, "states:1 imports schemes from above"),
        ({"states/base.py": "from thalweg import Explicit"}, "states.base:1 imports thalweg from above"),
        ({"_tree.py": "from thalweg._first_variation import pairing"}, "_tree:1 imports _first_variation from above"),
        ({"_flow.py": "if True:\n    from thalweg import io"}, "_flow:2 imports io from above"),
        ({"_flow.py": "def f():\n    from thalweg import io"}, "_flow:2 lazily imports io from above"),
        ({"_path.py": "from thalweg import io"}, "_path:1 imports io from above"),
        ({"_path.py": "def f():\n    import thalweg.cli"}, "_path:2 lazily imports cli from above"),
        ({"_flow.py": "import importlib\nimportlib.import_module('thalweg.io')"}, "_flow:2 imports io from above"),
        ({"__init__.py": "from .cli import main"}, "thalweg:1 imports cli from above"),
        ({"extras/new.py": ""}, "'extras' has no layer: place it in LAYERS"),
        ({"states/base.py": "from thalweg.recipes.fit import f"}, "states.base:1 imports recipes from above"),
        ({"_new.py": ""}, "'_new' has no layer: place it in LAYERS"),
        (
            {"states/base.py": "import thalweg.energies.base", "energies/base.py": "from thalweg.states import base"},
            "import cycle: energies.base <- states.base <- energies.base",
        ),
        ({"states/base.py": "from thalweg.states import Anything"}, None),
        ({"states/base.py": "def f():\n    from thalweg.energies import base"}, None),
        ({"_path.py": "class Path:\n    def save(self):\n        from thalweg import io"}, None),
        ({"cli/run.py": "import thalweg as tw\nfrom thalweg._flow import flow"}, None),
        ({"schemes/explicit.py": "from thalweg import states\nimport jax\nfrom os import path"}, None),
        (
            {
                "states/base.py": "import typing\nif typing.TYPE_CHECKING:\n    import thalweg.energies.base",
                "energies/base.py": "import thalweg.states.base",
            },
            None,
        ),
    ],
)
def test_the_rule_finds_what_breaks_it(tmp_path: Path, files: dict[str, str], complaint: str | None):
    package = tmp_path / "thalweg"
    house = ["states", "energies", "schemes", "io", "cli"]
    empty = [
        "__init__.py",
        "_flow.py",
        "_first_variation.py",
        "schemes/explicit.py",
        *(f"{n}/__init__.py" for n in house),
    ]
    for name, source in {**dict.fromkeys(empty, ""), "energies/base.py": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source)
    assert violations(package) == ([] if complaint is None else [complaint])


def test_every_module_is_short_enough_to_hold_one_idea():
    lengths = {file.relative_to(PACKAGE): len(file.read_text().splitlines()) for file in PACKAGE.rglob("*.py")}
    assert {str(file): lines for file, lines in lengths.items() if lines > MAX_LINES} == {}


def test_every_module_opens_with_a_docstring():
    silent = [
        name or "thalweg"
        for name, file in dotted_modules(PACKAGE).items()
        if not ast.get_docstring(ast.parse(file.read_text()))
    ]
    assert silent == []


def test_every_folder_of_modules_is_a_package():
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [
        str(folder.relative_to(PACKAGE)) for folder in sorted(folders) if not (folder / "__init__.py").exists()
    ] == []


def test_the_command_line_starts_without_jax():
    heavy = ["jax", "jaxlib", "equinox", "diffrax", "scipy", "matplotlib", "xarray"]
    code = f"import sys, thalweg.cli; thalweg.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_every_public_name_says_what_it_is():
    import thalweg

    assert thalweg.__all__, "no public names"
    assert len(set(thalweg.__all__)) == len(thalweg.__all__)
    silent = []
    for name in thalweg.__all__:
        thing = getattr(thalweg, name)
        if name.startswith("__"):  # __version__
            continue
        # A dataclass without a docstring is given its signature as one, and an instance inherits its class's.
        own = vars(thing).get("__doc__") if isinstance(thing, type) else inspect.getdoc(thing)
        if not own or own.startswith(f"{name}("):
            silent.append(name)
    assert silent == []
