r"""The transport between densities on a grid in two and three dimensions: a rigorous bracket from separable sums.

The masses of the cells are taken at their centres; $W_2$ between the densities themselves differs from that by at most
twice $(\sum h^2/12)^{1/2}$, and for smooth densities $W_2^2$ by $O(h^2)$. The kernel $e^{-|x-y|^2/\varepsilon}$ is a
product over the axes, so a step of Sinkhorn's iteration costs $O(dNn)$ for $N = n^d$ cells, in logarithms, with nothing
of size $N^2$. Then, as between particles, the c-transform of the potential is feasible (a lower bound on $W_2^2$), and
the plan scaled to exact marginals is a coupling (an upper bound). The value is the middle of the two.

**Source:** Solomon et al., *Convolutional Wasserstein distances* (2015); the rounding: Altschuler, Weed, Rigollet
(2017), algorithm 2.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, Scalar
from thalweg.states import Grid, GridDensity
from thalweg.states._base import is_concrete
from thalweg.transport._c_transform import c_transform
from thalweg.transport._distance import Certificate, Transport, envelope
from thalweg.transport._sinkhorn import EntropicCoupling, NoGeodesic, Sinkhorn, annealed

# Rows of an axis that are summed at once.
_ROWS = 16
# A line of so many cells is resolved well enough by epsilon = h².
_FINE = 32
# Of the marginals of the coupling: sums of exponentials of exponents of some thousands.
_ROUNDING = 1e-9


class GridMap(eqx.Module):
    """A map known at the cell centres, linear in between: a function of one point of shape `(dim,)`."""

    images: Array
    grid: Grid = eqx.field(static=True)

    def __call__(self, point: Array) -> Array:
        lower, spacing = (jnp.asarray(z, point.dtype) for z in (self.grid.lower, self.grid.spacing))
        place = list((point - lower) / spacing - 0.5)
        axes = [jax.scipy.ndimage.map_coordinates(self.images[..., k], place, 1, "nearest") for k in range(len(place))]
        return jnp.stack(axes)


def _default_epsilon(grid: Grid) -> float:
    """The square of the narrower side of a cell; less on coarse grids, where the bias is large and steps are cheap."""
    return min(grid.spacing) ** 2 * min(1.0, max(grid.shape) / _FINE)


def _log_sum(exponents: Array) -> Array:
    """The logarithm of the sum of exponentials along the first axis; a line of empty cells has a derivative, zero."""
    top = jax.lax.stop_gradient(jnp.max(exponents, axis=0, keepdims=True))
    empty = jnp.isneginf(top)
    top = jnp.where(empty, 0, top)
    total = jnp.sum(jnp.exp(exponents - top), axis=0, keepdims=True)
    return jnp.where(empty, -jnp.inf, top + jnp.log(jnp.where(empty, 1, total)))[0]


def _soft_sum(log_masses: Array, grid: Grid, rate: Scalar, tilt: Array) -> Array:
    r"""$\log\sum_y e^{z(y) - r|x - y|^2 + t\cdot(y - x)}$ at every cell x, axis by axis."""
    for axis in range(grid.dim):
        points = grid.axis_centres(axis).astype(log_masses.dtype)
        lines = jnp.moveaxis(log_masses, axis, 0)

        def row(point: Array, lines: Array = lines, points: Array = points, axis: int = axis) -> Array:
            exponent = tilt[axis] * (points - point) - rate * (points - point) ** 2
            return _log_sum(lines + exponent.reshape((-1,) + (1,) * (lines.ndim - 1)))

        log_masses = jnp.moveaxis(jax.lax.map(row, points, batch_size=_ROWS), 0, axis)
    return log_masses


def grid_transport(a: GridDensity, b: GridDensity, solver: Any) -> Transport:
    """The transport between two densities on one grid with walls."""
    grid = a.grid
    if solver is not None and not isinstance(solver, Sinkhorn):
        raise UnsupportedCombination(
            f"On a grid `solver` is `None` or `tw.Sinkhorn(epsilon)`; got `{type(solver).__name__}`."
        )
    if a.grid != b.grid:
        raise ValueError(
            f"In {grid.dim} dimensions both densities must live on one grid; got shapes {a.grid.shape} and "
            f"{b.grid.shape},\nlower corners {a.grid.lower} and {b.grid.lower}. Put both on the same `tw.Grid`."
        )
    if any(grid.is_periodic(axis) for axis in range(grid.dim)):
        raise UnsupportedCombination(
            f"`wasserstein_distance` of grid densities in {grid.dim} dimensions needs walls; this grid has a periodic\n"
            "axis. In one dimension circles are exact."
        )
    if solver is None:
        solver = Sinkhorn(_default_epsilon(grid))
    epsilon = solver.epsilon
    parts = _bracket(a.values, b.values, grid, epsilon, solver.tolerance, solver.max_steps)
    phi, psi, images, left, right, rest, primal, dual, off, converged = parts
    mass_a, mass_b = a.values * grid.cell_volume, b.values * grid.cell_volume
    points = grid.centres.astype(a.values.dtype).reshape(-1, grid.dim)
    coupling = EntropicCoupling(
        points, points, left.ravel(), right.ravel(), (rest[0].ravel(), rest[1].ravel()), epsilon
    )
    statement = f"masses at the cell centres, epsilon = {epsilon:.3g}: their W₂² lies between dual and primal"
    statement += "; the value given is the middle, wrong by at most half of the gap"
    if grid.mask is not None:
        statement += "; |x − y| is the straight way, through the obstacles of the mask"
    if is_concrete(converged) and not bool(converged):
        statement += f"; stopped after {solver.max_steps} steps with potentials not yet at {solver.tolerance:g}"
    if is_concrete(off) and not float(off) <= _ROUNDING:
        statement += f"; the coupling misses its marginals by {float(off):.1e} of the mass, so primal is no bound"
    # Equal densities are the one case that is known without a plan.
    same = jnp.all(mass_a == mass_b)
    value = envelope(jnp.where(same, 0, 0.5 * (primal + dual)), (phi, mass_a), (psi, mass_b))
    certificate = Certificate(primal, dual, statement)
    method = "Sinkhorn's iteration, axis by axis, and c-transforms"
    return Transport(a, b, value, GridMap(images, grid), coupling, (phi, psi), certificate, NoGeodesic(), method)


@eqx.filter_jit
def _bracket(
    values_a: Array, values_b: Array, grid: Grid, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Array, Array, Array, Array, Array, tuple[Array, Array], Scalar, Scalar, Scalar, Flag]:
    w, v = (jax.lax.stop_gradient(z / jnp.sum(z)) for z in (values_a, values_b))
    log_w, log_v = (jnp.log(z) for z in (w, v))
    flat = jnp.zeros((grid.dim,), w.dtype)

    def soft(log_masses: Array) -> Any:
        return lambda potential, now: -now * _soft_sum(log_masses + potential / now, grid, 1 / now, flat)

    size = sum((upper - lower) ** 2 for lower, upper in zip(grid.lower, grid.upper, strict=True))
    f, converged = annealed(soft(log_w), soft(log_v), w, jnp.asarray(size, w.dtype), epsilon, tolerance, max_steps)
    # Feasible potentials: c-transforms of the soft one. An empty cell binds nothing, so it takes no part.
    psi = c_transform(jnp.where(w > 0, -f, jnp.inf), grid).values
    phi = c_transform(jnp.where(v > 0, -psi, jnp.inf), grid).values
    psi = c_transform(-phi, grid).values
    dual = jnp.sum(phi * w) + jnp.sum(psi * v)
    # The plan, scaled down to both marginals where it has too much; what is missing is filled up at random.
    rate = jnp.asarray(1 / epsilon, w.dtype)
    left, right = log_w + f * rate, log_v + soft(log_w)(f, 1 / rate) * rate
    left = left + jnp.where(w > 0, jnp.minimum(log_w - left - _soft_sum(right, grid, rate, flat), 0), 0)
    right = right + jnp.where(v > 0, jnp.minimum(log_v - right - _soft_sum(left, grid, rate, flat), 0), 0)

    def cost_of(r: Scalar) -> Scalar:
        return jnp.sum(jnp.exp(left + _soft_sum(right, grid, r, flat)))

    # Σ P |x − y|² is the derivative of Σ P by minus the rate.
    cost = -jax.jvp(cost_of, (rate,), (jnp.ones_like(rate),))[1]
    missing = jnp.maximum(w - jnp.exp(left + _soft_sum(right, grid, rate, flat)), 0)
    share = jnp.maximum(v - jnp.exp(right + _soft_sum(left, grid, rate, flat)), 0)
    share = share / jnp.where(jnp.sum(share) > 0, jnp.sum(share), 1)
    points = grid.centres.astype(w.dtype)
    total = lambda z, weights: jnp.sum(z * weights[..., None], axis=tuple(range(grid.dim)))  # noqa: E731
    rest = jnp.sum(total(points**2, missing)) * jnp.sum(share) + jnp.sum(missing) * jnp.sum(total(points**2, share))
    rest = rest - 2 * jnp.sum(total(points, missing) * total(points, share))
    # The mean of y − x under the plan is the derivative of the logarithm by the tilt.
    shift = [
        jax.jvp(lambda tilt: _soft_sum(right, grid, rate, tilt), (flat,), (flat.at[axis].set(1),))[1]
        for axis in range(grid.dim)
    ]
    images = points + jnp.stack(shift, axis=-1)
    rows = jnp.exp(left + _soft_sum(right, grid, rate, flat)) + missing * jnp.sum(share)
    columns = jnp.exp(right + _soft_sum(left, grid, rate, flat)) + share * jnp.sum(missing)
    off = jnp.maximum(jnp.sum(jnp.abs(rows - w)), jnp.sum(jnp.abs(columns - v)))
    return phi, psi, images, left, right, (missing, share), cost + rest, dual, off, converged
