"""The certificate of a proximal step, F(x⁺) + D(x⁺, x)/2α ≤ F(x): its verdict does not depend on the unit of energy."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

_SCALES = (1e-12, 1.0, 1e12)


class _To(eqx.Module):
    """A "solver" that goes to a given point."""

    place: float

    def minimise(self, objective, start, scale):
        return jnp.full_like(start, self.place - 1), jnp.zeros_like(scale), jnp.asarray(True)


@pytest.mark.parametrize("scale", _SCALES)
@pytest.mark.parametrize(("place", "certified"), [(1e-10, True), (-1e-10, False)])
def test_the_verdict_on_a_step_of_a_vector_has_no_unit(scale, place, certified):
    # With F = s·x²/2, α = 1/s and x = 1, F(y) + D/2α ≤ F(x) is y² + (y − 1)² ≤ 1: it holds for 0 ≤ y ≤ 1.
    path = tw.flow(
        lambda x: 0.5 * scale * jnp.sum(x**2),
        jnp.ones(1),
        geometry=tw.Euclidean(),
        scheme=tw.Proximal(1 / scale, _To(place)),
        num_steps=1,
        throw=False,
    )
    assert path.result == (tw.RESULTS.successful if certified else tw.RESULTS.energy_increased)


@pytest.mark.parametrize("scale", _SCALES)
def test_a_run_into_the_minimum_is_certified_in_every_unit_and_from_every_origin(scale):
    # Least squares with a solution: in the end F is the square of a rounding error, and no rounding unit of itself.
    def energy(x):
        return 0.5 * scale * jnp.sum((jnp.asarray([[3.0, 1.0], [1.0, 2.0]]) @ x - jnp.asarray([1e3, 7.0])) ** 2)

    path = tw.flow(
        energy, jnp.asarray([3.0, -2.0]), geometry=tw.Euclidean(), scheme=tw.Proximal(3 / scale), num_steps=40
    )
    assert float(path.energies[-1]) < 1e-24 * scale * 1e6
    # A heap at the equilibrium of a potential and an entropy that cancel: F = 0, its terms are not.
    grid = tw.Grid(-2.0, 2.0, 24)
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2) - jnp.sum(jnp.cos(2 * x)), 1)
    gibbs = tw.GridDensity.from_function(lambda x: jnp.exp(target.log_density(x)), grid)
    shift = float(jnp.log(jnp.max(gibbs.values / jnp.exp(jax.vmap(target.log_density)(grid.centres)))))
    total = scale * (tw.PotentialEnergy(lambda x: shift - target.log_density(x)) + tw.Entropy())
    path = tw.flow(total, gibbs, geometry=tw.Wasserstein(), scheme=tw.Proximal(0.1 / scale), num_steps=5)
    np.testing.assert_allclose(path.energies / scale, path.energies[0] / scale, atol=1e-3)
