r"""The transport between densities on a grid in two and three dimensions.

In the plane the value is that of the dual between the cells (`_plane_dual`), for densities constant in the cells, with
the map and the geodesic of its potentials; in space, on small grids and by `tw.Sinkhorn` it is the middle of a bracket
for the masses at the cell centres.

The bracket is rigorous for any potential, whatever its error: its c-transform over the cells is feasible (a lower
bound), and the plan scaled to exact marginals is a coupling (an upper bound). Moved by one and the same offset in all
cells, a plan between the centres is one between the densities at the same cost, so the upper bound holds for these too.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, Scalar
from thalweg.states import Grid, GridDensity
from thalweg.states._base import is_concrete
from thalweg.transport._between_cells import between_cells
from thalweg.transport._c_transform import c_transform
from thalweg.transport._distance import Certificate, MapCoupling, Transport, envelope
from thalweg.transport._grid_plan import Plan, entropic_potential, plan_of, swept
from thalweg.transport._image_mass import Moves, moves
from thalweg.transport._plane_dual import STEP, plane_dual
from thalweg.transport._plane_geodesic import GridMap, PlaneGeodesic, centre_ways
from thalweg.transport._sinkhorn import NoGeodesic, Sinkhorn

# A line of so many cells is resolved well enough by epsilon = h².
_FINE = 32
# On fewer cells an axis Sinkhorn's iteration is fast, and a map between cells says little.
_FEWEST_OF_A_MAP = 16
# Of the dual in the plane, as a part of W₂².
_TOLERANCE, _MAX_STEPS = 1e-6, 60
# A gain at its end that says that it has not converged, and the steps of Sinkhorn's iteration that then follow.
_ROUGH, _MORE_SWEEPS = 1e-3, 60
# Of the marginals of the coupling: sums of exponentials of exponents of some thousands.
_ROUNDING = 1e-9


def grid_transport(a: GridDensity, b: GridDensity, solver: Any) -> Transport:
    """The transport between two densities on one grid."""
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
    if solver is None and grid.dim == 2 and min(grid.shape) >= _FEWEST_OF_A_MAP:
        return _by_the_dual(a, b)
    return _by_sinkhorn(a, b, Sinkhorn(_default_epsilon(grid)) if solver is None else solver)


def _default_epsilon(grid: Grid) -> float:
    """The square of the narrower side of a cell; less on coarse grids, where the bias is large and steps are cheap."""
    return min(grid.spacing) ** 2 * min(1.0, max(grid.shape) / _FINE)


def _by_sinkhorn(a: GridDensity, b: GridDensity, solver: Sinkhorn) -> Transport:
    grid, epsilon = a.grid, solver.epsilon
    phi, psi, plan, dual, converged = _from_sinkhorn(
        a.values, b.values, grid, epsilon, solver.tolerance, solver.max_steps
    )
    statement = _statement(grid, plan, epsilon)
    statement += "; the value given is the middle, wrong by at most half of the gap"
    if is_concrete(converged) and not bool(converged):
        statement += f"; stopped after {solver.max_steps} steps with potentials not yet at {solver.tolerance:g}"
    value = _differentiable(a, b, 0.5 * (plan.cost + dual), phi, psi)
    certificate = Certificate(plan.cost, dual, statement)
    method = "Sinkhorn's iteration, axis by axis, and c-transforms"
    return Transport(
        *(a, b, value, GridMap(plan.images, grid), plan.coupling, (phi, psi), certificate, NoGeodesic(), method)
    )


def _by_the_dual(a: GridDensity, b: GridDensity) -> Transport:
    grid, epsilon = a.grid, _default_epsilon(a.grid)
    phi, psi, functions, between, plan, dual, rough = _from_the_dual(a.values, b.values, grid, epsilon)
    statement = _statement(grid, plan, epsilon)
    statement += "; that of the densities, constant in cells, is not above primal; the value given is the dual between "
    statement += "the cells, and at least dual - Σh²/6 (no proof)"
    if is_concrete(rough) and bool(rough):
        statement += ": the map jumps or the densities are rough, so it may be off by Σh²"
    # By the variance of rounding to centres, whole cells are further apart where the map does not jump.
    variance = sum(h**2 for h in grid.spacing) / 6
    least = jnp.maximum(dual - variance, 0)
    value = _differentiable(a, b, jnp.clip(between, least, plan.cost), phi, psi)
    way = moves(-functions[0], grid, STEP)
    images = grid.centres.astype(a.values.dtype) + centre_ways(way, grid)
    certificate = Certificate(plan.cost, dual, statement)
    method = "quasi-Newton steps on the dual, by c-transforms, from Sinkhorn's potential on a coarse grid"
    coupling = _along(way, a)
    geodesic = PlaneGeodesic(a, b, functions)
    return Transport(a, b, value, GridMap(images, grid), coupling, (phi, psi), certificate, geodesic, method)


def _statement(grid: Grid, plan: Plan, epsilon: float) -> str:
    """What the bracket says."""
    text = f"masses at the cell centres, epsilon = {epsilon:.3g}: their W₂² lies between dual and primal"
    if grid.mask is not None:
        text += "; |x − y| is the straight way, through the obstacles of the mask"
    if is_concrete(plan.missed) and not float(plan.missed) <= _ROUNDING:
        text += f"; the plan misses its marginals by {float(plan.missed):.1e} of the mass, and primal is no bound by "
        text += "as much of a squared distance"
    return text


def _differentiable(a: GridDensity, b: GridDensity, value: Scalar, phi: Array, psi: Array) -> Scalar:
    # Equal densities are the one case that is known without a plan.
    same = jnp.all(a.values == b.values)
    volume = a.grid.cell_volume
    return envelope(jnp.where(same, 0, value), (phi, a.values * volume), (psi, b.values * volume))


def _along(way: Moves, a: GridDensity) -> MapCoupling:
    """The coupling of the map, with two points on each axis of a cell, between the sides of which the moves are linear:
    exact for the square of the distance.
    """
    grid = a.grid
    first, second = way.normal
    sides = [(first[:-1] * grid.spacing[0], first[1:] * grid.spacing[0])]
    sides.append((second[:, :-1] * grid.spacing[1], second[:, 1:] * grid.spacing[1]))
    centres = grid.centres.astype(a.values.dtype)
    nodes, images = [], []
    for i in (-1, 1):
        for j in (-1, 1):
            places = [0.5 + sign * 12**-0.5 for sign in (i, j)]
            ways = [before + u * (after - before) for (before, after), u in zip(sides, places, strict=True)]
            offset = [(u - 0.5) * h for u, h in zip(places, grid.spacing, strict=True)]
            nodes.append(centres + jnp.asarray(offset, centres.dtype)[None, None])
            images.append(nodes[-1] + jnp.stack(ways, axis=-1))
    masses = jnp.broadcast_to(a.values * (grid.cell_volume / 4), (4, *grid.shape))
    return MapCoupling(jnp.stack(nodes).reshape(-1, 2), jnp.stack(images).reshape(-1, 2), masses.ravel())


@eqx.filter_jit
def _from_sinkhorn(
    a: Array, b: Array, grid: Grid, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Array, Array, Plan, Scalar, Flag]:
    w, v = (jax.lax.stop_gradient(z / jnp.sum(z)) for z in (a, b))
    f, converged = entropic_potential(w, v, grid, epsilon, tolerance, max_steps)
    phi, psi, dual = _feasible(f, w, v, grid)
    return phi, psi, plan_of(f, w, v, grid, epsilon), dual, converged


@eqx.filter_jit
def _from_the_dual(
    a: Array, b: Array, grid: Grid, epsilon: float
) -> tuple[Array, Array, tuple[Array, Array], Scalar, Plan, Scalar, Flag]:
    a, b = jax.lax.stop_gradient((a, b))
    w, v = a / jnp.sum(a), b / jnp.sum(b)
    volume = grid.cell_volume
    found = plane_dual(w / volume, v / volume, grid, _TOLERANCE, _MAX_STEPS)
    # Where T jumps inside the mass the ascent comes to rest early, and Sinkhorn's iteration goes on from there.
    rough = found.gain > _ROUGH * jnp.abs(found.value)
    f = swept(-found.potential, w, v, grid, epsilon, jnp.where(rough, _MORE_SWEEPS, 0))
    f = jnp.where(jnp.all(w == v), 0, f)
    phi, psi, dual = _feasible(f, w, v, grid)
    return phi, psi, (f, between_cells(-f, grid, STEP)), found.value, plan_of(f, w, v, grid, epsilon), dual, rough


def _feasible(f: Array, w: Array, v: Array, grid: Grid) -> tuple[Array, Array, Scalar]:
    """Potentials that are feasible over the cells, from any one, and the dual of the masses at the centres."""
    # An empty cell binds nothing, so it takes no part in the first two of three transforms.
    binding = jnp.stack([w > 0, v > 0, jnp.ones_like(w, bool)])

    def transformed(potential: Array, binds: Array) -> tuple[Array, Array]:
        found = c_transform(jnp.where(binds, -potential, jnp.inf), grid).values
        return found, found

    psi, (_, phi, _) = jax.lax.scan(transformed, f, binding)
    return phi, psi, jnp.sum(phi * w) + jnp.sum(psi * v)
