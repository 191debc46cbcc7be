"""Solvers of the Fokker–Planck equation on a grid: thalweg and its peers, each as its users call it.

Every solver is a function `prepare(cells, **setting)` that returns `call(values) -> Outcome`, where `values` are a
density at time zero and the outcome is at time one. A call makes everything anew that it needs: coefficients,
matrices, factorisations.
"""

import os
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import _rotated_well as well
from benchmarks._rotated_well import Cells

# Far in the corners V is 250 and its slope 290, where no mass is; an explicit method has to resolve them all the same.
# Peers that would pay for that are given a potential that is level where it exceeds this: e^{-30} is rounding.
LEVEL = 30.0


class Outcome(NamedTuple):
    """The density at time one, and the processor seconds of the stepping alone where a solver separates it."""

    values: np.ndarray
    stepping: float | None = None


Prepare = Callable[..., Callable[[np.ndarray], Outcome]]


def _thalweg(solver: Callable[[], Any]) -> Prepare:
    def prepare(cells: Cells):
        import jax.numpy as jnp

        import thalweg as tw

        grid = tw.Grid((-well.HALF_WIDTH,) * 2, (well.HALF_WIDTH,) * 2, (cells.n, cells.n))

        def potential(x):
            return well.potential(x[0], x[1])

        def call(values):
            path = tw.flow(
                tw.PotentialEnergy(potential) + tw.Entropy(),
                tw.GridDensity.normalised(jnp.asarray(values), grid),
                geometry=tw.Wasserstein(),
                scheme=tw.Continuous(well.FINAL_TIME, solver=solver()),
                final_time=well.FINAL_TIME,
            )
            return Outcome(np.asarray(path.final.state.values))

        return call

    return prepare


def _default() -> Any:
    return None


def _axis_by_axis() -> Any:
    import thalweg as tw

    return tw.FiniteVolume()


def bare_scipy(cells: Cells, num_steps: int = 20, method: str = "Crank–Nicolson"):
    """Scharfetter–Gummel fluxes, one sparse factorisation, and a loop: what one writes by hand.

    Crank–Nicolson begins with two steps of implicit Euler in halves (Rannacher), which need no other matrix; SDIRK2 is
    the stiffly accurate pair with γ = 1 − 1/√2. The ordering of the factorisation is that for symmetric patterns, which
    halves its cost.
    """
    import scipy.sparse
    import scipy.sparse.linalg

    tau, gamma = well.FINAL_TIME / num_steps, 1 - 2**-0.5
    share = {"implicit Euler": 1.0, "Crank–Nicolson": 0.5, "SDIRK2": gamma}[method]

    def call(values):
        generator = scharfetter_gummel(well.potential(cells.x, cells.y), cells.spacing)
        identity = scipy.sparse.identity(cells.n**2, format="csc")
        solve = scipy.sparse.linalg.splu(
            (identity - share * tau * generator).tocsc(),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        ).solve
        q = values.ravel()
        if method == "implicit Euler":
            for _ in range(num_steps):
                q = solve(q)
        elif method == "Crank–Nicolson":
            explicit = (identity + 0.5 * tau * generator).tocsr()
            for _ in range(4):
                q = solve(q)
            for _ in range(num_steps - 2):
                q = solve(explicit @ q)
        else:
            for _ in range(num_steps):
                first = solve(generator @ q)
                second = solve(generator @ (q + tau * (1 - gamma) * first))
                q = q + tau * ((1 - gamma) * first + gamma * second)
        return Outcome(q.reshape(cells.n, cells.n))

    return call


def scharfetter_gummel(potential: np.ndarray, spacing: float):
    """The generator with exponentially fitted fluxes, as a sparse matrix."""
    import scipy.sparse

    numbers = np.arange(potential.size).reshape(potential.shape)
    rows, columns, entries = [], [], []
    for axis in range(potential.ndim):
        here, there = np.moveaxis(numbers, axis, 0)[:-1].ravel(), np.moveaxis(numbers, axis, 0)[1:].ravel()
        drop = potential.ravel()[there] - potential.ravel()[here]
        right, left = well.bernoulli(drop) / spacing**2, well.bernoulli(-drop) / spacing**2
        rows += [here, there, there, here]
        columns += [here, here, there, there]
        entries += [-right, right, -left, left]
    places = (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csc_matrix((np.concatenate(entries), places), shape=(potential.size, potential.size))


def py_pde(cells: Cells, solver: str = "euler", backend: str = "numba", adaptive: bool = False, share: float = 0.9):
    """`pde.PDE` with its compiled backend and explicit steps, `share` of the largest that is stable.

    Its walls are conditions on the argument of each operator. What makes the flux zero is a derivative of zero for the
    Laplacian and a value of zero, in the face, for the flux of which the divergence is taken. (A derivative of zero
    for both lets the drift carry mass in through the wall, without end; a density of zero there loses 3e-4.)
    """
    import pde

    grid = pde.CartesianGrid([[-well.HALF_WIDTH, well.HALF_WIDTH]] * 2, [cells.n, cells.n])
    level = well.potential(cells.x, cells.y) > LEVEL
    slope = np.where(level, 0.0, np.stack(well.gradient(cells.x, cells.y)))
    step = share * cells.spacing**2 / 4

    def call(values):
        equation = pde.PDE(
            {"q": "laplace(q) + divergence(q * g)"},
            consts={"g": pde.VectorField(grid, slope)},
            bc={"derivative": 0},
            bc_ops={"q:divergence": {"value": 0}},
        )
        found, info = equation.solve(
            pde.ScalarField(grid, values),
            t_range=well.FINAL_TIME,
            dt=step,
            tracker=None,
            solver=solver,
            backend=backend,
            ret_info=True,
            **({"adaptive": True} if adaptive else {}),
        )
        return Outcome(np.asarray(found.data), info["controller"]["profiler"]["solver"])

    return call


def fipy(cells: Cells, num_steps: int = 20, extrapolated: bool = True):
    """`TransientTerm() + ExponentialConvectionTerm() == DiffusionTerm()`, implicit Euler with SciPy's LU factors, made
    in each step; `extrapolated`: to zero step from n and 2n steps.
    """
    os.environ.setdefault("FIPY_SOLVERS", "scipy")
    import fipy as fp
    from fipy.solvers.scipy import LinearLUSolver

    def run(values, steps):
        mesh = fp.Grid2D(nx=cells.n, ny=cells.n, dx=cells.spacing, dy=cells.spacing) - well.HALF_WIDTH
        x, y = mesh.cellCenters.value
        potential = fp.CellVariable(mesh=mesh, value=well.potential(x, y))
        # Differences of V, not its derivative: with them the fitted flux is zero at the Gibbs state.
        drift = fp.FaceVariable(mesh=mesh, rank=1, value=-potential.faceGrad.value)
        q = fp.CellVariable(mesh=mesh, value=values.T.ravel())
        equation = fp.TransientTerm() + fp.ExponentialConvectionTerm(coeff=drift) == fp.DiffusionTerm(coeff=1.0)
        solver = LinearLUSolver()
        for _ in range(steps):
            equation.solve(var=q, dt=well.FINAL_TIME / steps, solver=solver)
        return np.asarray(q.value).reshape(cells.n, cells.n).T

    def call(values):
        if not extrapolated:
            return Outcome(run(values, num_steps))
        return Outcome(2 * run(values, 2 * num_steps) - run(values, num_steps))

    return call


def fplanck(cells: Cells):
    """`fplanck.fokker_planck(...).propagate`: a sparse matrix and SciPy's `expm_multiply`."""
    if not hasattr(np, "product"):
        # The release is older than NumPy 2, which dropped this name; nothing else is in its way.
        setattr(np, "product", np.prod)  # noqa: B010
    import fplanck as library
    import scipy.constants

    def potential(x, y):
        return np.minimum(well.potential(x, y), LEVEL)

    def call(values):
        started = time.process_time()
        solver = library.fokker_planck(
            temperature=1 / scipy.constants.k,
            drag=1.0,
            extent=[2 * well.HALF_WIDTH] * 2,
            resolution=cells.spacing,
            potential=potential,
        )
        assert np.allclose(solver.grid[0], cells.x)
        built = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            moved = solver.propagate(lambda x, y: values.copy(), well.FINAL_TIME)
        done = time.process_time()
        assert done >= built >= started
        return Outcome(np.asarray(moved) / cells.spacing**2, done - built)

    return call


OURS = "thalweg"
SOLVERS: dict[str, Prepare] = {
    OURS: _thalweg(_default),
    "thalweg, FiniteVolume": _thalweg(_axis_by_axis),
    "SciPy loop": bare_scipy,
    "py-pde": py_pde,
    "FiPy": fipy,
    "fplanck": fplanck,
}
