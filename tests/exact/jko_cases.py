"""What the tests of the true JKO step in the plane share."""

import jax.numpy as jnp
import numpy as np

import thalweg as tw


def square(n, boundary=None):
    """The unit square."""
    return tw.Grid((0.0, 0.0), (1.0, 1.0), (n, n), boundary or tw.NoFlux())


def averaged(n, fn):
    """Cell averages on the unit square of a function of the squared distance from its centre, with unit mass."""
    line = (np.arange(8 * n) + 0.5) / (8 * n) - 0.5
    values = fn(line[:, None] ** 2 + line[None] ** 2).reshape(n, 8, n, 8).mean((1, 3))
    return values / values.mean()


# The porous medium in a bowl: closed form 9 with λ = 8, γ = 0.05, at rest with a radius of (γ/π)^¼.
BOWL = tw.PotentialEnergy(lambda x: 4 * jnp.sum((x - 0.5) ** 2)) + 0.05 * tw.PorousMedium(2.0)
BOWL_RADIUS = (0.05 / np.pi) ** 0.25


def many_wells(x):
    """The potential in which the back-and-forth method's authors let a disc flow."""
    return jnp.prod(jnp.sin(3 * jnp.pi * x))


def disc(n):
    """Of radius 0.1 and mass one in the middle of the unit square."""
    return tw.GridDensity.normalised(jnp.asarray(averaged(n, lambda r2: (r2 < 0.01) * 1.0)), square(n))


def assert_lawful(path, step_size, residual):
    """Mass, sign, the residual, and the certificate of a true minimum, at every step."""
    for k in range(path.energies.shape[0]):
        state = path.state_at(k)
        np.testing.assert_allclose(float(state.mass), 1, atol=1e-13)
        assert float(jnp.min(state.values)) >= 0
    assert bool(jnp.all(path.measurements["residual"][1:] <= residual))
    assert bool(jnp.all(path.energies[1:] + path.distances_squared[1:] / (2 * step_size) <= path.energies[:-1]))
