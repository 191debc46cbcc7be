"""The lists of cells are complete: every public choice is in them, and the filter does not silently empty them."""

import inspect

import pytest

import thalweg as tw
from tests.laws import cells
from tests.laws.cells import Cell
from thalweg import likelihoods, schemes
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry
from thalweg.likelihoods import AbstractFamily
from thalweg.schemes import AbstractScheme, StepInfo
from thalweg.states import AbstractState
from thalweg.states.densities import AbstractDensityModel

# What the article and issue name, each as one cell; the laws run over them because they are supported.
_NAMED = [
    # (a) a quadratic and a curved valley: gradient descent, normalised, proximal, the ODE, and the exact ball
    *[
        Cell(energy, "vector", "euclidean", scheme)
        for energy in ("quadratic", "quartic")
        for scheme in ("explicit", "constrained", "constrained ball", "proximal", "continuous")
    ],
    *[Cell("quadratic", "vector", norm, "constrained") for norm in ("max norm", "one norm", "p norm", "mahalanobis")],
    Cell("quadratic", "matrix", "spectral norm", "explicit"),
    # (b) natural gradient
    Cell("likelihood of data", "bernoulli", "fisher-rao", "explicit"),
    Cell("likelihood of data", "regression", "fisher-rao", "backtracking"),
    # (c) Fokker–Planck in one and two dimensions, with walls and periodic, and by the article's explicit update
    *[Cell("kl", grid, "wasserstein", s) for grid in ("line", "circle", "plane") for s in ("continuous", "explicit")],
    Cell("sum", "plane", "wasserstein", "continuous"),
    # (d) JKO, on the line and for Gaussians
    *[Cell(energy, "line", "wasserstein", "proximal") for energy in ("kl", "porous medium", "sum")],
    Cell("kl", "gaussian", "wasserstein", "proximal"),
    # (e) Langevin particles, (f) f-divergences by particles with a kernel density
    Cell("kl", "particles", "wasserstein", "langevin"),
    *[
        Cell(energy, "kernel particles", "wasserstein", scheme)
        for energy in ("kl", "squared hellinger", "jensen shannon")
        for scheme in ("explicit", "continuous")
    ],
    Cell("kl", "line", "fisher-rao", "continuous"),
    Cell("kl", "gaussian", "fisher-rao", "continuous"),
    # (g) functionals of functions
    *[Cell("integral", "curve", d, s) for d in ("l2", "sobolev") for s in ("explicit", "proximal", "continuous")],
]

# How many energies a state has in a geometry (with Explicit), at least: the number when this was written.
_FEWEST = {
    **{("vector", norm): 2 for norm in ("euclidean", "mahalanobis", "max norm", "one norm", "p norm")},
    **{("pytree", norm): 2 for norm in ("euclidean", "mahalanobis", "max norm")},
    **{("matrix", norm): 2 for norm in ("p norm", "spectral norm")},
    ("probabilities", "bregman"): 2,
    ("pytree", "product of norms"): 2,
    ("vector", "riemannian"): 2,
    **{(grid, d): 11 for grid in ("line", "circle", "plane") for d in ("wasserstein", "fisher-rao")},
    ("plane", "hellinger-kantorovich"): 11,
    ("line", "spherical hellinger"): 11,
    ("particles", "wasserstein"): 2,
    ("weighted particles", "wasserstein"): 2,
    ("kernel particles", "wasserstein"): 10,
    ("weighted kernel particles", "wasserstein"): 10,
    ("gaussian", "wasserstein"): 10,
    ("gaussian", "fisher-rao"): 10,
    ("normal", "fisher-rao"): 3,
    ("normal mean scale", "fisher-rao"): 2,
    ("normal mean scale", "damped fisher-rao"): 2,
    ("bernoulli", "fisher-rao"): 3,
    ("poisson", "fisher-rao"): 3,
    ("regression", "fisher-rao"): 3,
    ("regression", "damped fisher-rao"): 3,
    ("regression", "empirical fisher"): 3,
    ("curve", "l2"): 3,
    ("curve", "sobolev"): 3,
}


def _exported(module, kinds):
    found = (value for _, value in inspect.getmembers(module, inspect.isclass) if issubclass(value, kinds))
    return {cls for cls in found if not inspect.isabstract(cls)}


def _public():
    return {name: getattr(tw, name) for name in tw.__all__}


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        (AbstractEnergy, lambda: cells.energies(1)),
        (AbstractState, cells.states),
        (AbstractDensityModel, cells.states),
        (AbstractGeometry, cells.geometries),
        (AbstractScheme, cells.schemes),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_public_class_is_listed(kind, listed):
    public = {value for value in _public().values() if inspect.isclass(value) and issubclass(value, kind)}
    assert public, f"thalweg exports no {kind.__name__}"
    missing = public - set(cells.modules_in(listed()))
    assert not missing, f"add to tests/laws/cells.py: {sorted(cls.__name__ for cls in missing)}"


def test_every_likelihood_and_every_solver_is_listed():
    families = _exported(likelihoods, AbstractFamily)
    assert families
    assert families <= set(cells.modules_in(cells.states()))
    # The parts of schemes: solvers and searches.
    parts = {
        value
        for value in _public().values()
        if inspect.isclass(value) and value.__module__.startswith(schemes.__name__)
    }
    parts -= {StepInfo}
    assert parts
    missing = parts - set(cells.modules_in(cells.schemes()))
    assert not missing, f"add to tests/laws/cells.py: {sorted(cls.__name__ for cls in missing)}"


@pytest.mark.parametrize("cell", _NAMED, ids=str)
def test_named_cell_is_supported(cell):
    energy, state, geometry, scheme = cell.parts
    assert tw.why_unsupported(energy, state, geometry=geometry, scheme=scheme) is None


def test_pairs_do_not_become_fewer():
    assert set(cells.pairs()) >= set(_FEWEST)


def test_the_tables_of_exceptions_name_what_is_listed():
    # A name that nothing has would be passed over in silence, and the laws run over other cells than the table says.
    schemes, states, geometries = cells.schemes(), cells.states(), cells.geometries()
    assert set(cells.VARIANTS) <= set(schemes)
    for scheme, pairs in cells.VARIANTS.items():
        for state, geometry in pairs:
            assert (state, geometry) in cells.pairs(), (scheme, state, geometry)
            energies = cells.energies_for(state)
            found = any(cells.is_supported(Cell(energy, state, geometry, scheme)) for energy in energies)
            assert found, f"no energy fits {scheme} at {state} in {geometry}"
    for name, others in cells.ALIKE.items():
        assert (name in states) != (name in geometries), name
        assert set(others) <= set(geometries if name in states else states), name


@pytest.mark.parametrize(("state", "geometry"), cells.pairs())
def test_cells_do_not_become_fewer(state, geometry):
    fewest = _FEWEST.get((state, geometry))
    assert fewest is not None, f"add {(state, geometry)} to the table of the fewest cells"
    assert len(cells.energies_at(state, geometry)) >= fewest
