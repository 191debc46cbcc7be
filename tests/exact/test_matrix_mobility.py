"""Matrix-valued mobilities on a grid: Selling's formula, a Gaussian that diffuses anisotropically, and the laws."""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.geometries.wasserstein._selling import selling


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_sellings_weights_are_not_negative_and_make_up_the_matrix(dim):
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(300, dim, dim)))[0]
    stretches = 10 ** rng.uniform(-3, 0, (300, dim))
    matrices = np.einsum("nij,nj,nkj->nik", turns, stretches, turns)
    weights, offsets = selling(matrices)
    assert weights.min() >= 0
    np.testing.assert_allclose(np.einsum("nm,nma,nmb->nab", weights, offsets, offsets), matrices, atol=1e-12)


def anisotropic(angle, ratio):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return jnp.asarray(turn @ np.diag([1.0, ratio]) @ turn.T)


@pytest.mark.parametrize(("angle", "ratio"), [(0.4, 0.2), (1.1, 0.02)])
def test_a_gaussian_diffuses_along_the_axes_of_the_matrix_with_second_order(angle, ratio):
    matrix, time = anisotropic(angle, ratio), 0.15
    geometry = tw.Wasserstein(mobility=lambda x, q: q * matrix)
    errors = []
    for n in (32, 64):
        grid = tw.Grid((-4.0, -4.0), (4.0, 4.0), (n, n))
        start = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2) / 0.5), grid)
        path = tw.flow(tw.Entropy(), start, geometry=geometry, scheme=tw.Continuous(time), num_steps=1)
        assert "exact in time" in path.stats["solver"]
        exact = tw.Gaussian(jnp.zeros(2), 0.25 * jnp.eye(2) + 2 * time * matrix)
        expected = tw.GridDensity.from_log_density(exact.log_density, grid)
        errors.append(float(jnp.sum(jnp.abs(path.final.state.values - expected.values)) * grid.cell_volume))
        assert float(jnp.min(path.final.state.values)) >= 0
        # The variance along the thin direction is the matrix's own, without the diffusion that upwinding would add.
        np.testing.assert_allclose(path.final.state.covariance(), exact.covariance, atol=0.3 * grid.cell_volume)
    assert np.log2(errors[0] / errors[1]) > 1.9


def test_a_multiple_of_the_identity_is_the_number():
    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (16, 20), (tw.Periodic(), tw.NoFlux()))
    energy = tw.PotentialEnergy(lambda x: jnp.sin(2 * x[0]) + x[1] ** 2) + 0.5 * tw.Entropy()
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-3 * jnp.sum((x - 0.5) ** 2)), grid)
    ends = [
        tw.flow(energy, start, geometry=tw.Wasserstein(mobility=m), scheme=tw.Continuous(0.3), num_steps=1)
        for m in (lambda x, q: 2.0 * q, lambda x, q: 2.0 * q * jnp.eye(2))
    ]
    np.testing.assert_allclose(ends[0].final.state.values, ends[1].final.state.values, atol=1e-9)


def test_many_steps_with_a_matrix_that_varies_keep_every_law():
    def mobility(x, q):
        along = jnp.stack([jnp.cos(x[1]), jnp.sin(x[1])])
        return q * (0.1 * jnp.eye(2) + jnp.outer(along, along))

    def potential(x):
        return 2 * jnp.cos(x[0]) + 0.5 * x[1] ** 2

    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (16, 18), mask=lambda x: jnp.sum((x + 0.8) ** 2) > 0.3)
    energy = tw.PotentialEnergy(potential) + 0.6 * tw.Entropy()
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-3 * jnp.sum((x - 0.5) ** 2)), grid)
    geometry, scheme = tw.Wasserstein(mobility=mobility), tw.Continuous(0.002)
    path = tw.flow(energy, start, geometry=geometry, scheme=scheme, num_steps=1000, save_every=10)
    values = np.asarray(path.states.values).reshape(len(path), -1)
    np.testing.assert_allclose(values.sum(axis=1) * grid.cell_volume, 1, atol=1e-13)
    assert values.min() >= 0
    assert np.max(np.diff(path.energies)) <= 1e-13 * 5
    gibbs = tw.GridDensity.from_log_density(lambda x: -potential(x) / 0.6, grid)
    kept = tw.flow(energy, gibbs, geometry=geometry, scheme=scheme, num_steps=1000, save_every=1000)
    assert float(jnp.sum(jnp.abs(kept.final.state.values - gibbs.values))) * grid.cell_volume < 1e-12
    # The explicit step is the same flow, by the metric.
    explicit = tw.flow(energy, start, geometry=geometry, scheme=tw.Explicit(2e-4), num_steps=100)
    there = tw.flow(energy, start, geometry=geometry, scheme=tw.Continuous(0.02), num_steps=1)
    assert float(jnp.max(jnp.abs(explicit.final.state.values - there.final.state.values))) < 0.02


@pytest.mark.parametrize(
    ("mobility", "complaint"),
    [
        (lambda x, q: q * jnp.ones(3), "a number or a matrix of shape"),
        (lambda x, q: q * jnp.asarray([[1.0, 0.5], [0.0, 1.0]]), "must be symmetric"),
        (lambda x, q: q * jnp.asarray([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda x, q: q**2 * jnp.eye(2), "must be q times a matrix"),
        (lambda x, q: q * anisotropic(0.35, 1e-4), "stretched so much"),
    ],
)
def test_what_is_no_mobility_matrix_is_refused(mobility, complaint):
    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (8, 8))
    start = tw.GridDensity.normalised(jnp.ones((8, 8)), grid)
    reason = tw.why_unsupported(
        tw.Entropy(), start, geometry=tw.Wasserstein(mobility=mobility), scheme=tw.Continuous(0.1)
    )
    assert reason is not None
    assert complaint in reason
    assert len(reason.splitlines()) <= 5


def test_energies_that_are_not_linear_say_what_to_do_with_a_matrix():
    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (8, 8))
    start = tw.GridDensity.normalised(jnp.ones((8, 8)), grid)
    geometry = tw.Wasserstein(mobility=lambda x, q: q * jnp.eye(2))
    reason = tw.why_unsupported(tw.PorousMedium(2.0), start, geometry=geometry, scheme=tw.Continuous(0.1))
    assert reason is not None
    assert "Explicit" in reason
