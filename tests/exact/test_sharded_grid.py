"""A grid spread over several devices: the same flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import thalweg as tw


@pytest.mark.parametrize(
    ("energy", "choices"),
    [
        (tw.PotentialEnergy(lambda x: jnp.sum((x**2 - 1) ** 2)) + 0.5 * tw.Entropy(), tw.Continuous(0.05)),
        pytest.param(
            tw.PotentialEnergy(lambda x: jnp.sum(x**2)) + tw.PorousMedium(2.0),
            tw.Continuous(0.02),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            tw.Entropy() + tw.InteractionEnergy(lambda z: jnp.sum(z**2)), tw.Explicit(1e-4), marks=pytest.mark.slow
        ),
    ],
    ids=["exact in time", "porous medium", "explicit with interaction"],
)
def test_a_grid_spread_over_devices_gives_the_same_flow(energy, choices):
    devices = jax.devices()
    if len(devices) < 4 and jax.default_backend() != "cpu":
        pytest.skip("needs four devices")
    # On the CPU tests/conftest.py offers them; to skip here would be never to run.
    assert len(devices) >= 4
    grid = tw.Grid((-2.0, -2.0), (2.0, 2.0), (16, 12))
    start = tw.GridDensity.from_function(lambda x: jnp.exp(-2 * jnp.sum((x - 0.3) ** 2)), grid)
    sharding = NamedSharding(Mesh(np.array(devices[:4]).reshape(2, 2), ("x", "y")), PartitionSpec("x", "y"))
    spread = tw.GridDensity(jax.device_put(start.values, sharding), grid)
    ends = [
        tw.flow(energy, state, geometry=tw.Wasserstein(), scheme=choices, num_steps=3).final.state.values
        for state in (start, spread)
    ]
    assert len(ends[1].sharding.device_set) == 4
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-12)
