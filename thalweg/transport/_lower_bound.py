r"""A lower bound for $W_2^2$ between two densities constant in the cells of a plane grid, without an unknown constant.

Take the centres, sides and corners of the cells as nodes and potentials $\varphi, \psi$ that are feasible between
nodes. Let I interpolate linearly along each axis and $\tilde\varphi = |x|^2 - I(|x|^2 - \varphi)$, the same for $\psi$.
For $x = \sum_i\lambda_i x_i$ and $y = \sum_j\mu_j y_j$ with the weights of I,

$$\tilde\varphi(x) + \tilde\psi(y) = \sum_{ij}\lambda_i\mu_j\,(\varphi_i + \psi_j - |x_i|^2 - |y_j|^2) + |x|^2 + |y|^2
\le |x|^2 + |y|^2 - 2\sum_{ij}\lambda_i\mu_j\,x_i\cdot y_j = |x - y|^2,$$

so they are feasible in the whole plane. On average over a cell $|x|^2 - I|x|^2$ is $-h^2/24$ an axis, and $I\varphi$
has weights of a quarter, a half and a quarter an axis. With $\bar a, \bar b$ the masses so shared among the nodes,

$$W_2^2(a, b) \ge \sum\varphi\,\bar a + \sum\psi\,\bar b - \tfrac1{12}\sum_k h_k^2.$$

On a periodic axis the same holds for each shift by periods. For a smooth map and the best potentials the bound is low
by $h^2/24$ times the mean of $T' + 1/T'$ an axis, up to the error of the nodes.
"""

import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Scalar
from thalweg.states import Grid
from thalweg.transport._c_transform import c_transform
from thalweg.transport._grid_plan import swept


def lower_bound(potential: Array, a: Array, b: Array, grid: Grid, sweeps: int | Count) -> tuple[Scalar, Array]:
    r"""The bound from any potential of the start after some of Sinkhorn's steps between the nodes, and the potential
    after these.

    **Arguments:** `a`, `b`: masses of the cells, of sum one.
    """
    nodes = _nodes(grid)
    a, b = _shared(a, grid), _shared(b, grid)
    f = swept(_between(potential, grid), a, b, nodes, min(nodes.spacing) ** 2, sweeps)
    _, _, dual = feasible(f, a, b, nodes)
    return dual - sum(h**2 for h in grid.spacing) / 12, f[1::2, 1::2]


def feasible(f: Array, w: Array, v: Array, grid: Grid) -> tuple[Array, Array, Scalar]:
    """Potentials that are feasible over the cells, from any one, and the dual of the masses at the centres."""
    # An empty cell binds nothing, so it takes no part in the first two of three transforms.
    binding = jnp.stack([w > 0, v > 0, jnp.ones_like(w, bool)])

    def transformed(potential: Array, binds: Array) -> tuple[Array, Array]:
        found = c_transform(jnp.where(binds, -potential, jnp.inf), grid).values
        return found, found

    psi, (_, phi, _) = jax.lax.scan(transformed, f, binding)
    return phi, psi, jnp.sum(phi * w) + jnp.sum(psi * v)


def _nodes(grid: Grid) -> Grid:
    """A grid with a centre at every corner, side and centre of the cells."""
    lower = tuple(x - h / 4 for x, h in zip(grid.lower, grid.spacing, strict=True))
    shape = tuple(2 * n + (not grid.is_periodic(axis)) for axis, n in enumerate(grid.shape))
    upper = tuple(x + n * h / 2 for x, n, h in zip(lower, shape, grid.spacing, strict=True))
    return Grid(lower, upper, shape, grid.boundary)


def _shared(masses: Array, grid: Grid) -> Array:
    """The masses of the nodes."""
    for axis in range(grid.dim):
        z = jnp.moveaxis(masses, axis, 0)
        before, after = _beside(z, grid.is_periodic(axis), jnp.zeros_like(z[:1]), jnp.zeros_like(z[:1]))
        masses = jnp.moveaxis(_alternating(0.25 * (before + after), 0.5 * z), 0, axis)
    return masses


def _between(values: Array, grid: Grid) -> Array:
    """The values at the nodes, straight beyond the last centres."""
    for axis in range(grid.dim):
        z = jnp.moveaxis(values, axis, 0)
        before, after = _beside(z, grid.is_periodic(axis), 2 * z[:1] - z[1:2], 2 * z[-1:] - z[-2:-1])
        values = jnp.moveaxis(_alternating(0.5 * (before + after), z), 0, axis)
    return values


def _beside(z: Array, periodic: bool, below: Array, above: Array) -> tuple[Array, Array]:
    """What is before and after each face along the first axis."""
    if periodic:
        return jnp.roll(z, 1, 0), z
    return jnp.concatenate([below, z]), jnp.concatenate([z, above])


def _alternating(faces: Array, centres: Array) -> Array:
    """Faces and centres in turn along the first axis, a face first."""
    size = len(faces) + len(centres)
    joined = jnp.zeros((size, *centres.shape[1:]), centres.dtype)
    return joined.at[0::2].set(faces).at[1::2].set(centres)
