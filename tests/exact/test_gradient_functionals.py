"""Functionals of the gradient of a density: sympy derives the variation of the integral, and the error of the discrete
one is of second order, boundary cells and corners included.
"""

import jax.numpy as jnp
import numpy as np
import pytest
import sympy

import thalweg as tw
from tests.exact.functional_cases import WALL, WRAP, at, centres, compiled

# Where a derivative of q is discretised. Cosines have no slope at the walls; the variation is then a function, and its
# error is of second order at every cell, corners included.

X = sympy.symbols("x y z")
Q = sympy.Function("q")


def variation(lagrangian, q, dim):
    """∂L/∂q − Σ d/dx_i ∂L/∂q_i, and the natural boundary term ∂L/∂q_i, of an integrand L(q, slopes, x), by sympy."""
    u, slopes = sympy.Symbol("u"), sympy.symbols("p0 p1 p2")[:dim]
    there = {u: q, **{p: sympy.diff(q, x) for p, x in zip(slopes, X, strict=False)}}
    integrand = lagrangian(u, slopes)
    fluxes = [sympy.diff(integrand, p).subs(there) for p in slopes]
    inner = sympy.diff(integrand, u).subs(there) - sum(sympy.diff(flux, x) for flux, x in zip(fluxes, X, strict=False))
    return inner, fluxes


def on_grid(expression, grid):
    fn = sympy.lambdify(X[: grid.dim], expression, "numpy")
    return np.broadcast_to(np.asarray(fn(*np.moveaxis(centres(grid), -1, 0)), float), grid.shape)


def squares(slopes):
    return sum(p**2 for p in slopes)


def log_target(x):
    return 0.4 * jnp.sum(jnp.cos(jnp.pi * x)) - 0.2 * jnp.sum(jnp.cos(2 * jnp.pi * x))


def relative(u, slopes):
    logs = [sympy.Rational(2, 5) * sympy.cos(sympy.pi * x) - sympy.cos(2 * sympy.pi * x) / 5 for x in X]
    return sum(u * (p / u - sympy.diff(log, x)) ** 2 for p, log, x in zip(slopes, logs, X, strict=False))


def area(state):
    return jnp.sum(jnp.sqrt(1 + state.gradient_squared())) * state.grid.cell_volume


def weighted(state):
    return jnp.sum(state.values**2 * state.gradient_squared()) * state.grid.cell_volume


def by_faces(state):
    return sum(jnp.sum(slope**4) for slope in state.face_gradients()) / 4 * state.grid.cell_volume


DIFFERENTIAL = {
    "dirichlet": (lambda dim: tw.DirichletEnergy(), lambda u, p: squares(p) / 2),
    "fisher": (lambda dim: tw.FisherInformation(), lambda u, p: squares(p) / u),
    "relative fisher": (lambda dim: tw.FisherInformation(tw.Target(log_target, dim)), relative),
    "area": (lambda dim: tw.Functional(area), lambda u, p: sympy.sqrt(1 + squares(p))),
    "weighted by the density": (lambda dim: tw.Functional(weighted), lambda u, p: u**2 * squares(p)),
    "fourth powers of slopes": (lambda dim: tw.Functional(by_faces), lambda u, p: sum(q**4 for q in p) / 4),
    "cahn hilliard": (
        lambda dim: tw.InternalEnergy(lambda q: (q**2 - 1) ** 2 / 4) + 0.01 * tw.DirichletEnergy(),
        lambda u, p: (u**2 - 1) ** 2 / 4 + squares(p) / 200,
    ),
}


def errors(names, sizes, q, boundary=WALL, natural=False):
    """For each functional and size the largest error of the first variation over the cells, relative to the largest
    value. With `natural` the boundary term is added to the cells at the walls, where it is a density on a face."""
    found = {name: [] for name in names}
    dim = len(sizes[0])
    exact = {name: variation(DIFFERENTIAL[name][1], q, dim) for name in names}
    for shape in sizes:
        grid = tw.Grid((0.0,) * dim, (1.0,) * dim, shape, boundary)
        state = at(on_grid(q, grid), grid)
        energies = {name: DIFFERENTIAL[name][0](dim) for name in names}

        def first(state, energies=energies):
            return {name: tw.first_variation(energy, state).regular.values for name, energy in energies.items()}

        for name, got in compiled(first, state).items():
            inner, fluxes = exact[name]
            expected = on_grid(inner, grid).copy()
            for axis, flux in enumerate(fluxes if natural else ()):
                for wall, outward, end in ((0, -1, 0), (1, 1, -1)):
                    at_wall = on_grid(flux.subs(X[axis], wall), grid)
                    cells = tuple(end if i == axis else slice(None) for i in range(dim))
                    expected[cells] += outward * at_wall[cells] / grid.spacing[axis]
            found[name].append(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))
    return found


WAVE = sum(sympy.cos(sympy.pi * x) / (6 + i) for i, x in enumerate(X)) + sympy.prod(
    sympy.cos(sympy.pi * x) / 2 for x in X
)
SIZES = {1: ((50,), (100,)), 2: ((24, 20), (48, 40)), 3: ((24, 20, 22), (48, 40, 44))}


def at_most(expression, dim):
    return 1 + expression.subs({x: 0 for x in X[dim:]})


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_variations_of_gradients_are_of_second_order_at_every_cell(dim):
    for name, (coarse, fine) in errors(list(DIFFERENTIAL), SIZES[dim], at_most(WAVE, dim)).items():
        assert np.log2(coarse / fine) > 1.9, (name, coarse, fine)


def test_variations_of_gradients_are_of_second_order_around_a_torus():
    around = WAVE.subs({x: 2 * x + sympy.Rational(1, 7) for x in X}, simultaneous=True) / 2
    names = [name for name in DIFFERENTIAL if name != "relative fisher"]
    for name, (coarse, fine) in errors(names, ((40, 36), (80, 72)), at_most(around, 2), WRAP).items():
        assert np.log2(coarse / fine) > 1.9, (name, coarse, fine)


@pytest.mark.parametrize("dim", [1, 2])
def test_a_slope_at_the_wall_is_the_natural_boundary_term(dim):
    slanted = sum(x / (2 + i) + x**3 / 9 for i, x in enumerate(X)) + X[0] * X[1] / 3
    # Relative to the boundary term, which is a density on a face: its value in a cell grows like 1/h. An integrand that
    # depends on q too misses its part in the half cell between the last face and the wall.
    orders = {"dirichlet": 2, "fourth powers of slopes": 2, "fisher": 1}
    sizes = {1: ((100,), (200,)), 2: ((48, 40), (96, 80))}[dim]
    for name, (coarse, fine) in errors(list(orders), sizes, at_most(slanted, dim), natural=True).items():
        assert np.log2(coarse / fine) > orders[name] - 0.1, (name, coarse, fine)
