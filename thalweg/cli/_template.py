"""A problem file for a named problem, with every choice spelled out: what `thalweg run NAME` runs, to change."""

import inspect
from pathlib import Path

from thalweg import problems
from thalweg.cli._document import Document, parse_document
from thalweg.cli._errors import UsageError, nearest
from thalweg.problems import DensityProblem, RegressionProblem, TargetProblem, VectorProblem

_CELLS = {1: 128, 2: 64}

_HEAD = """# {about}
# Source: {source}
# Run it with: thalweg run {name}.toml

[problem]
name = "{name}"

"""

_VECTOR = """[state]
type = "Vector"

[geometry]
type = "Euclidean"

[scheme]
type = "Continuous"
step_size = 0.5

[run]
final_time = 50.0
"""

_DENSITY = """[state]
type = "GridDensity"
shape = {shape}

[geometry]
type = "Wasserstein"

[scheme]
type = "Continuous"
step_size = {step_size}

[run]
final_time = {final_time}
"""

_TARGET = """[state]
type = "Particles"
num_particles = 2000

[geometry]
type = "Wasserstein"

[scheme]
type = "Langevin"
step_size = 0.02

[run]
num_steps = 2000
save_every = 20
seed = 0
"""

_REGRESSION = """[state]
type = "Parametric"
start = 0

[geometry]
type = "FisherRao"

[scheme]
type = "Explicit"
step_size = {{ type = "Backtracking" }}

[run]
num_steps = 200
stop = {{ type = "Stationary", tolerance = 1e-10 }}
"""


def template(name: str) -> str:
    """The text of a problem file for one of `thalweg.problems.names()`.

    **Raises:** `UsageError` for a name that is not among them.
    """
    if name not in problems.names():
        raise UsageError(f"There is no problem named `{name}`. {nearest(name, problems.names())}")
    problem = problems.get(name)
    head = _HEAD.format(about=about(name), source=" ".join(problem.source.split()), name=name)
    match problem:
        case VectorProblem():
            return head + _VECTOR
        case DensityProblem():
            # A hundred steps, rounded to two digits.
            step_size = float(f"{problem.final_time / 100:.2g}")
            shape = _CELLS.get(problem.dim, 24)
            return head + _DENSITY.format(step_size=step_size, final_time=100 * step_size, shape=shape)
        case TargetProblem():
            return head + _TARGET.format()
        case RegressionProblem():
            return head + _REGRESSION.format()
    raise UsageError(f"The problem `{name}` is of a kind that the command line does not know.")


def named_document(name: str) -> Document:
    """The document that [`template`][] spells."""
    return parse_document(template(name), name=f"{name} (built in)", stem=name, folder=Path.cwd())


def regressions() -> tuple[str, ...]:
    """The names of the NIST regressions."""
    return tuple(dataset.lower() for dataset in problems.DATASETS)


def about(name: str) -> str:
    """One sentence on a named problem: the first of its docstring."""
    function = getattr(problems, name, None)
    if function is None:
        return f"The NIST regression {name}, with an answer certified to 11 digits."
    paragraph = inspect.getdoc(function).split("\n\n")[0]  # type: ignore[union-attr]
    return _untex(" ".join(paragraph.split()).replace("[`thalweg.problems.", "`").replace("`][]", "`"))


_SIGNS = {
    r"\partial_t": "∂t",
    r"\nabla": "∇",
    r"\cdot": "·",
    r"\Delta": "Δ",
    r"\gamma": "γ",
    r"\lambda": "λ",
    r"\tfrac{\kappa}{2}": "½κ",
    r"\tfrac12": "½",
    "^2": "²",
    "^m": "ᵐ",
    "$": "",
}


def _untex(text: str) -> str:
    """The few formulas of first sentences, readable in a terminal."""
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    return text
