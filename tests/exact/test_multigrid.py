"""The multigrid of elliptic and of carrying operators: what it must be for its Krylov methods, and how fast it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from thalweg.transport import _multigrid as multigrid
from thalweg.transport._multigrid import Elliptic, Transport

_RANDOM = np.random.default_rng(3)


def coordinates(shape):
    return np.meshgrid(*[(np.arange(n) + 0.5) / n for n in shape], indexing="ij")


def elliptic(density, diagonal, periodic=False, masked=None):
    """The operator of the arithmetic mean of a density on the faces."""
    faces = []
    for axis in range(density.ndim):
        face = 0.5 * (density + np.roll(density, -1, axis))
        if masked is not None:
            face = np.where(masked | np.roll(masked, -1, axis), 0, face)
        if not periodic:
            face[(slice(None),) * axis + (-1,)] = 0
        faces.append(jnp.asarray(face))
    return Elliptic(jnp.asarray(diagonal * np.ones_like(density)), tuple(faces))


def case(name, shape):
    x = coordinates(shape)
    square = sum((c - 0.45) ** 2 for c in x)
    if name == "even":
        return elliptic(np.ones(shape), 0.0)
    if name == "periodic":
        return elliptic(np.ones(shape), 1e-4, periodic=True)
    if name == "support":  # a disc in a vacuum: conductances vanish at its edge, and are zero beyond
        return elliptic(np.maximum(0.1 - square, 0), 1e-4)
    if name == "tails":  # densities from one to 1e-40
        return elliptic(np.exp(-300 * square), 1e-3 * np.exp(-300 * square))
    walls = (np.abs(x[0] - 0.7) < 0.04) & (np.abs(x[-1] - 0.5) < 0.42)
    return elliptic(np.ones(shape), 0.0, masked=walls)


@functools.partial(jax.jit, static_argnums=2)
def solved(operator, right, max_steps):
    return multigrid.solve(operator, right, max_steps=max_steps)


@pytest.mark.parametrize("shape", [(45,), (33, 50), (12, 13, 11)])
@pytest.mark.parametrize("name", ["even", "periodic", "support", "tails", "wall"])
def test_the_equation_is_solved_in_a_few_steps_whatever_the_coefficients(name, shape):
    operator = case(name, shape)
    wanted = jnp.asarray(_RANDOM.normal(size=shape))
    right = multigrid.apply(operator, wanted)
    found = solved(operator, right, 15)
    assert float(found.residual) <= 1e-8
    residual = right - multigrid.apply(operator, found.values)
    assert float(jnp.linalg.norm(residual)) <= 1.01e-8 * float(jnp.linalg.norm(right))


def dense(linear, shape):
    size = int(np.prod(shape))
    return np.asarray(jax.vmap(lambda e: linear(e.reshape(shape)).reshape(-1))(jnp.eye(size))).T


@pytest.mark.parametrize("name", ["support", "tails", "wall"])
def test_the_cycle_is_a_symmetric_positive_map(name):
    shape = (9, 14)
    operator = case(name, shape)
    levels = multigrid.hierarchy(operator)
    assert len(levels.levels) > 0
    cycle = dense(lambda r: multigrid.v_cycle(levels, r), shape)
    # In the scale of the diagonal of A, in which its entries are of order one.
    root = np.sqrt(np.asarray(multigrid.main_diagonal(operator)).reshape(-1))
    scaled = root[:, None] * cycle * root[None, :]
    np.testing.assert_allclose(scaled, scaled.T, atol=1e-11 * np.abs(scaled).max())
    assert np.linalg.eigvalsh(scaled).min() >= -1e-11 * np.abs(scaled).max()


def test_a_coarse_operator_is_the_fine_one_on_pairs_over_the_distance():
    fine = elliptic(np.ones((7,)), 2.0)
    coarse = multigrid._halve(fine, 0)
    np.testing.assert_array_equal(coarse.diagonal, [4, 4, 4, 2])
    np.testing.assert_allclose(coarse.faces[0], [1 / 2, 1 / 2, 1 / 1.5, 0])


def test_without_a_diagonal_constants_are_left_to_the_guess():
    operator = case("even", (24, 20))
    wanted = jnp.asarray(_RANDOM.normal(size=(24, 20)))
    right = multigrid.apply(operator, wanted)
    found = multigrid.solve(operator, right + 3.0, jnp.full((24, 20), 5.0), 1e-10)
    assert float(jnp.mean(found.values)) == pytest.approx(5.0, abs=1e-10)
    np.testing.assert_allclose(found.values - 5, wanted - jnp.mean(wanted), atol=1e-6)


def test_cells_behind_walls_keep_the_guess():
    operator = case("wall", (30, 30))
    closed = np.asarray(multigrid.main_diagonal(operator)) == 0
    assert closed.any()
    right = multigrid.apply(operator, jnp.asarray(_RANDOM.normal(size=(30, 30))))
    found = multigrid.solve(operator, right, jnp.full((30, 30), 7.0))
    np.testing.assert_array_equal(np.asarray(found.values)[closed], 7.0)


@pytest.mark.slow
def test_wide_cells_wait_until_the_others_are_as_wide():
    # Conductances go with 1/h²: cells eight times as wide along the second axis.
    even = elliptic(np.ones((64, 24)), 1e-6)
    operator = Elliptic(even.diagonal, (even.faces[0], even.faces[1] / 64))
    right = multigrid.apply(operator, jnp.asarray(_RANDOM.normal(size=(64, 24))))
    aware = multigrid.hierarchy(operator, (1.0, 8.0))
    assert [level.halved for level in aware.levels[:4]] == [(0,), (0,), (0,), (0, 1)]
    with_widths = multigrid.solve(operator, right, multigrid=aware)
    without = multigrid.solve(operator, right)
    assert float(with_widths.residual) <= 1e-8
    assert int(with_widths.num_steps) <= 12 < int(without.num_steps)


def test_a_good_guess_saves_steps():
    operator = case("support", (40, 40))
    wanted = jnp.asarray(_RANDOM.normal(size=(40, 40)))
    right = multigrid.apply(operator, wanted)
    far = multigrid.solve(operator, right)
    near = multigrid.solve(operator, right, wanted + 1e-6)
    assert int(near.num_steps) < int(far.num_steps) - 2


def test_derivatives_are_those_of_the_solution():
    operator = case("support", (10, 9))
    right = jnp.asarray(_RANDOM.normal(size=(10, 9)))
    direction = jnp.asarray(_RANDOM.normal(size=(10, 9)))

    def answer(scale):
        changed = Elliptic(operator.diagonal * (1 + scale), tuple(k * (1 - scale) for k in operator.faces))
        return jnp.vdot(direction, multigrid.solve(changed, right + scale * direction, tolerance=1e-13).values)

    step = 1e-5
    quotient = (answer(step) - answer(-step)) / (2 * step)
    # Central differences: an error of step² times the third derivative, and rounding over step.
    np.testing.assert_allclose(jax.grad(answer)(0.0), quotient, rtol=1e-6)


def test_a_carrying_operator_keeps_the_sum_and_is_preconditioned():
    shape = (40, 36)
    x = coordinates(shape)
    drift = [40 * (c - 0.5) for c in x]
    forward, backward = [], []
    for axis, v in enumerate(drift):
        open_faces = np.ones(shape)
        open_faces[(slice(None),) * axis + (-1,)] = 0
        forward.append(jnp.asarray(open_faces * (3 + np.maximum(-v, 0))))
        backward.append(jnp.asarray(open_faces * (3 + np.maximum(v, 0))))
    operator = Transport(jnp.ones(shape), tuple(forward), tuple(backward))
    values = jnp.asarray(_RANDOM.uniform(size=shape))
    image = multigrid.apply(operator, values)
    np.testing.assert_allclose(jnp.sum(image), jnp.sum(values), rtol=1e-12)
    levels = multigrid.hierarchy(operator)
    left = image
    found = jnp.zeros(shape)
    for _ in range(10):  # as an iteration by itself
        found = found + multigrid.v_cycle(levels, left)
        left = image - multigrid.apply(operator, found)
    assert float(jnp.linalg.norm(left)) < 1e-3 * float(jnp.linalg.norm(image))
