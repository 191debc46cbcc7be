r"""One flow, several representations: grid, particles and Gaussian agree at equal times, and carry mass as they say.

The weak form of the continuity equation, $\frac{\mathrm d}{\mathrm dt}\int\varphi\,\mathrm dq =
\int\langle\nabla\varphi, v\rangle\,\mathrm dq$, is asked of every representation with one test function $\varphi$. (The
equation on a grid and the particles of an f-divergence are compared in `tests/exact/test_particles.py`.)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

import thalweg as tw
from tests.laws import cells
from thalweg import generators

_RATE, _CENTRE, _TIME = 1.3, 0.4, 0.6
_MEAN, _VARIANCE = -0.8, 0.35


def _normal_quantiles(num, mean, variance):
    """A sample without sampling error: the middle quantiles of a normal distribution, rescaled to its variance."""
    levels = ndtri((np.arange(num) + 0.5) / num)
    return jnp.asarray(mean + np.sqrt(variance) * levels / levels.std())[:, None]


def _moments(state):
    """The mean and the variance on the line."""
    if isinstance(state, tw.Gaussian):
        return np.asarray([state.mean[0], state.covariance[0, 0]])
    return np.asarray([state.mean()[0], state.covariance()[0, 0]])


def _start(kind):
    gaussian = tw.Gaussian(jnp.asarray([_MEAN]), jnp.asarray([[_VARIANCE]]))
    if kind == "gaussian":
        return gaussian
    if kind == "grid":
        return tw.GridDensity.from_log_density(gaussian.log_density, tw.Grid(-5.0, 5.0, 160))
    if kind == "kernel particles":
        return tw.Particles(_normal_quantiles(100, _MEAN, _VARIANCE), density=tw.KernelDensity())
    return tw.Particles(_normal_quantiles(20_000, _MEAN, _VARIANCE))


@pytest.mark.parametrize(
    ("kind", "scheme", "tolerances"),
    [
        # To the tolerance of the solver: the Gaussian flow is exact for a quadratic potential.
        ("gaussian", tw.Continuous(_TIME), (1e-7, 1e-7)),
        # O(h²) with h = 1/16.
        ("grid", tw.Continuous(_TIME), (1e-3, 2e-3)),
        # A kernel estimate of a normal sample is off by its bandwidth's share of the variance.
        ("kernel particles", tw.Explicit(_TIME / 100), (4e-3, 0.03)),
        # Standard errors of 20,000 draws, times four, with the O(α) of the scheme added.
        ("particles", tw.Langevin(_TIME / 100), (4 * 0.0055 + 0.004, 4 * 0.0055 + 0.004)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_representations_agree_on_an_ornstein_uhlenbeck_flow(kind, scheme, tolerances):
    # Closed form 1 with A = λ, T = 1.
    energy = tw.PotentialEnergy(lambda x: 0.5 * _RATE * jnp.sum((x - _CENTRE) ** 2)) + tw.Entropy()
    path = tw.flow(
        energy,
        _start(kind),
        geometry=tw.Wasserstein(),
        scheme=scheme,
        final_time=_TIME,
        save_every=1000,
        key=jax.random.key(7),
    )
    decay = np.exp(-_RATE * _TIME)
    exact = [_CENTRE + decay * (_MEAN - _CENTRE), 1 / _RATE + decay**2 * (_VARIANCE - 1 / _RATE)]
    gap = np.abs(_moments(path.final.state) - exact)
    assert float(path.final.time) == _TIME
    assert np.all(gap <= tolerances), gap


_MOBILITIES = {
    generators.reverse_kl: lambda r: 1 + 0 * r,
    generators.forward_kl: lambda r: r,
    generators.pearson_chi2: lambda r: 2 * r**2,
    generators.neyman_chi2: lambda r: 2 / r,
    generators.squared_hellinger: lambda r: jnp.sqrt(r) / 2,
    generators.jensen_shannon: lambda r: r / (2 * (1 + r)),
    generators.jeffreys: lambda r: 1 + r,
    generators.alpha(0.5): lambda r: r**0.5,
    generators.alpha(-1.0): lambda r: r**-1.0,
    generators.alpha(2.0): lambda r: r**2.0,
}


def test_every_generator_has_its_closed_form_here():
    assert set(generators.KNOWN.values()) <= set(_MOBILITIES)


@pytest.mark.parametrize("generator", _MOBILITIES, ids=lambda g: getattr(g, "__name__", repr(g)))
def test_generator_has_the_relative_mobility_and_the_first_variation_of_its_divergence(generator):
    # Closed form 20, w = r²f″, and the article's δF/δq = f(r) − r f′(r), which on a grid must hold cell by cell.
    ratios = jnp.exp(jnp.linspace(-3.0, 3.0, 25))
    found = jax.vmap(generators.relative_mobility(generator))(ratios)
    np.testing.assert_allclose(found, _MOBILITIES[generator](ratios), rtol=1e-12)
    assert float(generator(jnp.asarray(1.0))) == 0.0
    state = cells.states()["line"]
    target = tw.Target(lambda x: -0.5 * jnp.sum((x - 0.3) ** 2) - 0.5 * jnp.log(2 * jnp.pi), 1)
    xi = tw.first_variation(tw.FDivergence(generator, target), state).regular.values
    log_ratio = state.on_cells(target.log_density) - jnp.log(state.values)
    r = jnp.exp(log_ratio)
    expected = jax.vmap(lambda r: generator(r) - r * jax.grad(generator)(r))(r)
    # Reverse KL is played as potential plus entropy: its first variation is the same up to no constant at all.
    np.testing.assert_allclose(xi, expected, rtol=1e-11, atol=1e-11)


def _bump(point):
    return jnp.sum(jnp.sin(2 * point)) + 0.3 * jnp.sum(point) ** 2


@pytest.mark.parametrize("state", ["particles", "weighted particles", "kernel particles", "gaussian"])
def test_continuity_equation_holds_in_its_weak_form_at_particles_and_gaussians(state):
    x = cells.states()[state]
    metric = tw.Wasserstein().at(x)
    v = metric.steepest_descent(
        tw.first_variation(tw.InteractionEnergy(cells.energies(1)["interaction"].interaction_kernel), x)
    )

    def mean_of_bump(scale):
        return metric.move(v, scale).expect(_bump)

    rate = jax.grad(mean_of_bump)(0.0)
    if isinstance(x, tw.Gaussian):
        points, weights = x.nodes()
        speeds = v.tangent.mean[None] + (points - x.mean[None]) @ v.field
    else:
        points, weights, speeds = x.positions, x.weights, v.tangent.positions
    expected = jnp.sum(weights * jnp.sum(jax.vmap(jax.grad(_bump))(points) * speeds, axis=-1))
    # Exact at particles. The nodes of a Gaussian turn as its Cholesky factor does, so there the error of the quadrature
    # (1e-6 for a sine of two) shows.
    np.testing.assert_allclose(rate, expected, rtol=1e-5 if isinstance(x, tw.Gaussian) else 1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_continuity_equation_holds_in_its_weak_form_on_grids_to_second_order(dim):
    # With q normal, V = sin: d/dt ∫φ dq = −∫⟨∇φ, ∇V⟩ dq, by quadrature on a grid ten times as fine.
    potential = lambda x: jnp.sum(jnp.sin(x))  # noqa: E731
    density = lambda x: jnp.exp(-jnp.sum(x**2))  # noqa: E731

    def make(n):
        return tw.GridDensity.from_function(density, tw.Grid((-4.0,) * dim, (4.0,) * dim, (n,) * dim))

    @eqx.filter_jit
    def rate(state):
        metric = tw.Wasserstein().at(state)
        v = metric.steepest_descent(tw.first_variation(tw.PotentialEnergy(potential), state))
        return jnp.sum(v.tangent.values * state.on_cells(_bump)) * state.grid.cell_volume

    fine = make(400 if dim == 1 else 160)
    slopes = fine.on_cells(lambda x: jnp.sum(jax.grad(_bump)(x) * jax.grad(potential)(x)))
    expected = -jnp.sum(fine.values * slopes) * fine.grid.cell_volume
    errors = np.abs([float(rate(make(n)) - expected) for n in (20, 40, 80)])
    assert errors[-1] < 1e-2 * abs(expected)
    assert np.all(np.log2(errors[:-1] / errors[1:]) > 1.8), errors


@pytest.mark.parametrize("grid", ["line", "circle", "plane"])
def test_grid_velocity_moves_mass_through_faces_and_loses_none(grid):
    # A bare ∂q could create mass: the tangent is the divergence of the fluxes, and nothing crosses a wall.
    state = cells.states()[grid]
    v = tw.Wasserstein().at(state).steepest_descent(tw.first_variation(tw.PotentialEnergy(_bump), state))
    assert abs(float(jnp.sum(v.tangent.values))) < 1e-12 * float(jnp.sum(jnp.abs(v.tangent.values)))
    for axis, flux in enumerate(v.field.fluxes):
        wall = jnp.take(flux, -1, axis=axis)
        if state.grid.is_periodic(axis):
            assert float(jnp.max(jnp.abs(wall))) > 0
        else:
            np.testing.assert_array_equal(wall, 0)
