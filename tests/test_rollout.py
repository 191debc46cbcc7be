"""rollout is flow as a pure function: the same numbers, and gradients and batches go through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

KEY = jax.random.key(3)
GRID = tw.Grid(-4.0, 4.0, 40)
Q0 = tw.GridDensity.from_function(lambda x: jnp.exp(-2 * jnp.sum((x - 1) ** 2)), GRID)
CLOUD = tw.Particles(jax.random.normal(KEY, (30, 1)))
START = jnp.array([1.0, -0.5])


def well(rate):
    return tw.PotentialEnergy(lambda x: 0.5 * rate * jnp.sum(x**2)) + 0.5 * tw.Entropy()


def vector_energy(rate):
    return lambda x: 0.5 * rate * x[0] ** 2 + 0.25 * jnp.sum(x**4) + x[0] * x[1]


CELLS = {
    "explicit vector": (vector_energy, START, tw.Euclidean(), tw.Explicit(0.1), lambda s: s[0]),
    "proximal vector": (vector_energy, START, tw.Euclidean(), tw.Proximal(0.5), lambda s: s[0]),
    "constrained ball": (vector_energy, START, tw.Euclidean(), tw.Constrained(0.1, tw.NewtonBall()), lambda s: s[0]),
    "ode": (vector_energy, START, tw.Euclidean(), tw.Continuous(0.2), lambda s: s[0]),
    "jko": (well, Q0, tw.Wasserstein(), tw.Proximal(0.2), lambda s: s.mean()[0]),
    "finite volume": (well, Q0, tw.Wasserstein(), tw.Continuous(0.1), lambda s: s.mean()[0]),
    "langevin": (well, CLOUD, tw.Wasserstein(), tw.Langevin(0.1), lambda s: jnp.sum(s.positions**2)),
    "gaussian jko": (
        well,
        tw.Gaussian(jnp.array([1.0]), jnp.array([[0.3]])),
        tw.Wasserstein(),
        tw.Proximal(0.3),
        lambda s: s.mean[0],
    ),
}


def final(name, rate):
    make, state, geometry, scheme, observe = CELLS[name]
    path = tw.rollout(make(rate), state, geometry=geometry, scheme=scheme, num_steps=2, key=KEY)
    return observe(path.final.state)


@pytest.mark.parametrize("name", CELLS)
def test_the_gradient_through_a_whole_flow_is_that_of_finite_differences(name):
    both = jax.jit(jax.value_and_grad(lambda rate: final(name, rate)))
    gradient = float(both(jnp.asarray(1.3))[1])
    step = 1e-4
    expected = float(both(jnp.asarray(1.3 + step))[0] - both(jnp.asarray(1.3 - step))[0]) / (2 * step)
    # Central differences are good to step² and to the solvers' tolerance over the step; the finite volumes' adapted
    # substeps jump a little with the parameter.
    np.testing.assert_allclose(gradient, expected, rtol=1e-3 if name == "finite volume" else 1e-5)
    assert abs(gradient) > 1e-3


def test_rollout_takes_the_steps_of_flow():
    for name in ("explicit vector", "langevin"):
        make, state, geometry, scheme, _ = CELLS[name]
        energy = make(1.3)
        options = {"geometry": geometry, "scheme": scheme, "num_steps": 6, "save_every": 2, "key": KEY}
        pure, hosted = tw.rollout(energy, state, **options), tw.flow(energy, state, **options)
        for a, b in zip(jax.tree.leaves(pure.states), jax.tree.leaves(hosted.states), strict=True):
            # The same operations, fused differently by the compiler.
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(pure.times, hosted.times, rtol=1e-14)


def test_a_batch_of_starts_is_one_call():
    starts = jnp.stack([START, 2 * START, -START])

    def run(start):
        return tw.rollout(
            vector_energy(1.0), start, geometry=tw.Euclidean(), scheme=tw.Explicit(0.1), num_steps=4
        ).final.state

    batch = jax.vmap(run)(starts)
    for k in range(3):
        np.testing.assert_allclose(batch[k], run(starts[k]), rtol=1e-12)


def test_a_failing_step_ends_a_rollout_where_it_was():
    path = tw.rollout(
        lambda x: jnp.sum(x**4), 10 * jnp.ones(2), geometry=tw.Euclidean(), scheme=tw.Explicit(0.5), num_steps=20
    )
    assert path.result == tw.RESULTS.non_finite
    assert np.all(np.isfinite(np.asarray(path.states)))
