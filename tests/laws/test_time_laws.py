r"""Laws of time: the order of every scheme against the flow itself, and the energy balance.

The reference is `Continuous` with tight tolerances. A scheme of order $p$ with $N$ steps to a time $T$ is off by
$C N^{-p}$, so doubling $N$ divides the error by $2^p$; the order is read off three step sizes.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import thalweg as tw
from tests.laws.cells import Cell
from thalweg.states import moving

# One for each kind of metric, with an energy that is neither linear in the state nor quadratic.
_BOTH = [
    Cell("quartic", "vector", "euclidean"),
    Cell("quartic", "vector", "p norm"),
    Cell("interaction", "weighted particles", "wasserstein"),
    Cell("likelihood of data", "regression", "fisher-rao"),
]
_EXPLICIT = [
    Cell("sum", "gaussian", "wasserstein"),
    Cell("squared hellinger", "kernel particles", "wasserstein"),
    Cell("kl", "line", "fisher-rao"),
    Cell("kl", "gaussian", "fisher-rao"),
    # The article's update on a grid, whose step is bounded by h²/2 = 0.018.
    Cell("kl", "line", "wasserstein"),
    Cell("jensen shannon", "circle", "wasserstein"),
]
_TIME = 0.08
_ACCURATE = tw.ODESolver(diffrax.Dopri5(), rtol=1e-11, atol=1e-13)


def _path(cell, scheme, num_steps, save_every):
    energy, state, geometry, _ = cell.parts
    path = tw.flow(energy, state, geometry=geometry, scheme=scheme, num_steps=num_steps, save_every=save_every)
    np.testing.assert_allclose(path.times[-1], _TIME, rtol=1e-14)
    return path


def _flat(state):
    return np.asarray(ravel_pytree(moving(state))[0])


def _end(cell, scheme, num_steps):
    return _flat(_path(cell, scheme, num_steps, num_steps).final.state)


def _orders(ends, reference):
    errors = np.asarray([np.max(np.abs(end - reference)) for end in ends])
    return np.log2(errors[:-1] / errors[1:]), errors


@pytest.mark.parametrize("cell", [*_BOTH, *_EXPLICIT], ids=str)
def test_explicit_and_proximal_are_of_first_order_to_the_flow_which_loses_what_it_dissipates(cell):
    path = _path(cell, tw.Continuous(_TIME / 20, _ACCURATE), 20, 1)
    reference = _flat(path.final.state)
    for kind in (tw.Explicit, tw.Proximal) if cell in _BOTH else (tw.Explicit,):
        orders, errors = _orders([_end(cell, kind(_TIME / n), n) for n in (16, 32, 64)], reference)
        # The next order shows as αλ/2, here below a tenth.
        assert np.all(np.abs(orders - 1) < 0.1), (kind.__name__, orders, errors)
        # And it is the same flow: not first order to somewhere else.
        assert errors[-1] < 0.02 * np.max(np.abs(reference)), (kind.__name__, errors)
    # The integral of the rate over a twentieth of the time is right to O(Δt²).
    balance = path.energy_balance()
    assert balance.decrease > 0
    assert balance.relative_error < 3e-3, balance


def test_jko_on_the_line_is_of_first_order_and_its_limit_is_the_flow():
    # W₂ of densities constant on cells and finite volumes differ by O(h²) in space, so the order is read off the JKO
    # steps alone, and the limit is compared with h² = 0.035 in mind.
    cell = Cell("kl", "line", "wasserstein")
    ends = [_end(cell, tw.Proximal(_TIME / n), n) for n in (4, 8, 16)]
    first, second = np.max(np.abs(ends[0] - ends[1])), np.max(np.abs(ends[1] - ends[2]))
    assert abs(np.log2(first / second) - 1) < 0.15, (first, second)
    limit = 2 * ends[2] - ends[1]
    flow = _end(cell, tw.Continuous(_TIME), 1)
    assert np.max(np.abs(limit - flow)) < 0.01 * np.max(flow)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("kl", "line", "wasserstein"),
        Cell("porous medium", "circle", "wasserstein"),
        Cell("sum", "plane", "wasserstein"),
    ],
    ids=str,
)
def test_finite_volumes_are_of_second_order_in_time_and_keep_their_tolerance(cell):
    # A tolerance that accepts everything: from the third step on, one substep is one step.
    free = tw.FiniteVolume(tolerance=1e9)
    reference = _end(cell, tw.Continuous(_TIME / 512, free), 512)
    orders, errors = _orders([_end(cell, tw.Continuous(_TIME / n, free), n) for n in (16, 32, 64)], reference)
    assert np.all(orders > 1.7), (orders, errors)
    default = _end(cell, tw.Continuous(_TIME), 1)
    # The first-order error of a substep is at most 3e-5 before it is cancelled.
    assert np.max(np.abs(reference - default)) < 1e-4 * np.max(reference)


def test_langevin_moments_are_of_first_order():
    # Exact moments of the scheme for V = λx²/2: m_k = (1 − αλ)^k m₀ and s_{k+1} = (1 − αλ)² s_k + 2α; particles must
    # agree with them within 4.5 standard errors, and they, not the particles, are of first order to the flow.
    rate, start_mean, start_variance, num = 1.5, 2.0, 0.3, 40_000
    target = tw.Target(lambda x: -0.5 * rate * jnp.sum(x**2), 1)
    start = tw.Particles.sample(
        tw.Gaussian(jnp.asarray([start_mean]), jnp.asarray([[start_variance]])), num, key=jax.random.key(3)
    )
    first_mean, first_variance = float(start.mean()[0]), float(start.covariance()[0, 0])
    time, gaps = 0.6, []
    for n in (3, 6, 12):
        alpha = time / n
        path = tw.flow(
            tw.KL(target),
            start,
            geometry=tw.Wasserstein(),
            scheme=tw.Langevin(alpha),
            num_steps=n,
            save_every=n,
            key=jax.random.key(n),
        )
        mean, variance = first_mean, first_variance
        for _ in range(n):
            mean, variance = (1 - alpha * rate) * mean, (1 - alpha * rate) ** 2 * variance + 2 * alpha
        added = variance - (1 - alpha * rate) ** (2 * n) * first_variance
        z_mean = (float(path.final.state.mean()[0]) - mean) / np.sqrt(added / num)
        # The variance of the sample mixes the given start with new normal noise.
        spread = np.sqrt((2 * added**2 + 4 * added * (variance - added)) / num)
        z_variance = (float(path.final.state.covariance()[0, 0]) - variance) / spread
        assert abs(z_mean) < 4.5, (n, z_mean)
        assert abs(z_variance) < 4.5, (n, z_variance)
        flow_variance = 1 / rate + np.exp(-2 * rate * time) * (first_variance - 1 / rate)
        gaps.append([mean - np.exp(-rate * time) * first_mean, variance - flow_variance])
    orders = np.log2(np.abs(np.asarray(gaps[:-1]) / np.asarray(gaps[1:])))
    assert np.all(np.abs(orders - 1) < 0.35), orders
