"""The JKO step in the plane by its Kantorovich dual, against closed forms 8 and 9."""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

W2 = tw.Wasserstein()
N = 32


def barenblatt(n, radius):
    """Cell averages of closed form 9's profile, m = 2, in the unit square."""
    line = (np.arange(8 * n) + 0.5) / (8 * n) - 0.5
    squares = (line[:, None] ** 2 + line[None] ** 2) / radius**2
    values = np.maximum(1 - squares, 0).reshape(n, 8, n, 8).mean((1, 3))
    return values / values.mean()


START, AFTER_ONE, AFTER_TWO = 0.1999437, 0.2215524, 0.2387871


def test_two_steps_of_a_barenblatt_profile_stay_in_its_family():
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (N, N))
    q0 = tw.GridDensity.normalised(jnp.asarray(barenblatt(N, START)), grid)
    scheme = tw.Proximal(9.215e-5, solver=tw.KantorovichNewton())
    path = tw.flow(tw.PorousMedium(2.0), q0, geometry=W2, scheme=scheme, num_steps=2)
    for k, radius in ((1, AFTER_ONE), (2, AFTER_TWO)):
        state = path.state_at(k)
        # 21 h² and 29 h² were measured from 64² to 256²: order two, the front's surplus the largest part.
        assert float(jnp.sum(jnp.abs(state.values - barenblatt(N, radius)))) / N**2 < 32 / N**2
        assert float(jnp.min(state.values)) >= 0
        np.testing.assert_allclose(float(state.mass), 1, atol=1e-13)
        assert float(path.measurements["residual"][k]) <= 1e-6
    # The step is a true minimum: it ends lower than it began, by the distance at least.
    spent = path.energies[1:] + path.distances_squared[1:] / (2 * 9.215e-5)
    assert bool(jnp.all(spent <= path.energies[:-1]))
    # The mean of |T(x) − x|² of the exact step, R₀ → R₁ with second moment ⅓ of the unit profile.
    np.testing.assert_allclose(float(path.distances_squared[1]), (AFTER_ONE - START) ** 2 / 3, rtol=0.03)


def test_a_gaussian_meets_its_closed_form_and_the_gibbs_state_stays():
    rate, centre, temperature, step = 1.5, 0.3, 0.8, 0.02
    grid = tw.Grid((-5.0, -5.0), (5.0, 5.0), (N, N))
    energy = tw.PotentialEnergy(lambda x: 0.5 * rate * jnp.sum((x - centre) ** 2)) + temperature * tw.Entropy()
    scheme = tw.Proximal(step, solver=tw.KantorovichNewton())

    def after_one_step(fn):
        start = tw.GridDensity.from_function(fn, grid)
        return start, tw.flow(energy, start, geometry=W2, scheme=scheme, num_steps=1)

    start, path = after_one_step(lambda x: jnp.exp(-jnp.sum((x - 1) ** 2) / (2 * 0.6**2)))
    expected = (1 + step * rate * centre) / (1 + step * rate)
    # The mean of the discrete step is exact but for the solver's tolerance and what the walls hold.
    np.testing.assert_allclose(path.final.state.mean(), [expected] * 2, atol=1e-5)
    root = np.sqrt(0.6**2 + 4 * temperature * step * (1 + step * rate))
    deviation = (0.6 + root) / (2 * (1 + step * rate))
    # A cell's width adds h²/12 to the covariance that a density reports; the scheme's own error is smaller.
    h = 10 / N
    covariance = path.final.state.covariance() - h**2 / 12 * jnp.eye(2)
    np.testing.assert_allclose(covariance, deviation**2 * np.eye(2), atol=0.05 * h**2)
    assert float(path.measurements["duality_gap"][1]) < 1e-5

    gibbs, path = after_one_step(lambda x: jnp.exp(-0.5 * rate * jnp.sum((x - centre) ** 2) / temperature))
    np.testing.assert_allclose(path.final.state.values, gibbs.values, atol=1e-12)


@pytest.mark.parametrize(
    ("energy", "word"),
    [
        (tw.PotentialEnergy(lambda x: jnp.sum(x**2)), "plus one of"),
        (tw.Entropy() + tw.PorousMedium(2.0), "plus one of"),
        (tw.PorousMedium(0.5), "m > 1"),
        (tw.Entropy() + tw.InteractionEnergy(lambda z: jnp.sum(z**2)), "nothing else"),
    ],
)
def test_what_it_cannot_take_is_said_before_anything_is_compiled(energy, word):
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (8, 8))
    q0 = tw.GridDensity.normalised(jnp.ones((8, 8)), grid)
    with pytest.raises(tw.UnsupportedCombination, match=word):
        tw.flow(energy, q0, geometry=W2, scheme=tw.Proximal(0.1, solver=tw.KantorovichNewton()), num_steps=1)
