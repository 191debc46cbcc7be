r"""The transport between densities on a grid in two and three dimensions.

In the plane the value is that of the dual between the cells, not below a rigorous bound (`_plane_potential`), for
densities constant in the cells, with the map and the geodesic of its potentials; in space, on small grids and by
`tw.Sinkhorn` it is the middle of a bracket for the masses at the cell centres.

The bracket is rigorous for any potential, whatever its error: its c-transform over the cells is feasible (a lower
bound), and the plan scaled to exact marginals is a coupling (an upper bound). Moved by one and the same offset in all
cells, a plan between the centres is one between the densities at the same cost, so the upper bound holds for these too.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._errors import UnsupportedCombination
from thalweg._types import Array, Flag, Scalar
from thalweg.states import Grid, GridDensity
from thalweg.states._base import is_concrete
from thalweg.transport._distance import Certificate, MapCoupling, Transport, envelope
from thalweg.transport._grid_plan import Plan, entropic_potential, plan_of
from thalweg.transport._image_mass import moves
from thalweg.transport._lower_bound import feasible
from thalweg.transport._map_coupling import MISSED, best_coupling
from thalweg.transport._plane_dual import STEP
from thalweg.transport._plane_geodesic import GridMap, PlaneGeodesic, centre_ways
from thalweg.transport._plane_potential import plane_potential
from thalweg.transport._sinkhorn import NoGeodesic, Sinkhorn

# A line of so many cells is resolved well enough by epsilon = h².
_FINE = 32
# On fewer cells an axis Sinkhorn's iteration is fast, and a map between cells says little.
_FEWEST_OF_A_MAP = 16
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
            f"In {grid.dim} dimensions both densities must live on one grid; {_differences(a.grid, b.grid)}.\n"
            "Put both on the same `tw.Grid`."
        )
    if a.values.dtype != b.values.dtype:
        raise ValueError(
            f"Both densities must have one precision; got {a.values.dtype} and {b.values.dtype}.\n"
            f"Convert one: `tw.GridDensity(values.astype(jnp.{a.values.dtype}), grid)`."
        )
    if solver is None and grid.dim == 2 and min(grid.shape) >= _FEWEST_OF_A_MAP:
        return _by_the_dual(a, b)
    return _by_sinkhorn(a, b, Sinkhorn(_default_epsilon(grid)) if solver is None else solver)


def _differences(one: Grid, other: Grid) -> str:
    """What two grids differ in, in words."""
    parts = []
    for name, what in (("shape", "shapes"), ("lower", "lower corners"), ("upper", "upper corners")):
        first, second = getattr(one, name), getattr(other, name)
        if first != second:
            parts.append(f"got {what} {first} and {second}")
    for axis, (first, second) in enumerate(zip(one.boundary, other.boundary, strict=True)):
        if first != second:
            parts.append(f"got boundaries {first} and {second} on axis {axis}")
    return "; ".join(parts) if parts else "got two masks"


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
    found = _from_the_dual(a.values, b.values, grid, epsilon)
    statement = _statement(grid, found.plan, epsilon)
    statement += "; that of the densities, constant in cells, which is the value given, lies between least and primal"
    if is_concrete(found.doubtful) and bool(found.doubtful):
        statement += (
            "; the value is doubtful: it may be off by more than Σh²/5, as the map jumps or stretches or is rough"
        )
    if is_concrete(found.lost) and float(found.lost) > MISSED:
        share = f"{100 * float(found.lost):.2g} %"
        statement += f"; the coupling, that of a map, has {share} of the mass of an end in the wrong place"
    value = _differentiable(a, b, found.value, *found.feasible)
    images = grid.centres.astype(a.values.dtype) + centre_ways(moves(-found.functions[0], grid, STEP), grid)
    certificate = Certificate(found.plan.cost, found.dual, statement, found.least)
    method = "quasi-Newton steps on the dual, by c-transforms, from Sinkhorn's potential on a coarse grid"
    geodesic = PlaneGeodesic(a, b, found.functions)
    return Transport(a, b, value, GridMap(images, grid), found.coupling, found.feasible, certificate, geodesic, method)


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


@eqx.filter_jit
def _from_sinkhorn(
    a: Array, b: Array, grid: Grid, epsilon: float, tolerance: float, max_steps: int
) -> tuple[Array, Array, Plan, Scalar, Flag]:
    w, v = (jax.lax.stop_gradient(z / jnp.sum(z)) for z in (a, b))
    f, converged = entropic_potential(w, v, grid, epsilon, tolerance, max_steps)
    phi, psi, dual = feasible(f, w, v, grid)
    return phi, psi, plan_of(f, w, v, grid, epsilon), dual, converged


class _Found(NamedTuple):
    functions: tuple[Array, Array]
    feasible: tuple[Array, Array]
    value: Scalar
    least: Scalar
    dual: Scalar
    plan: Plan
    doubtful: Flag
    coupling: MapCoupling
    lost: Scalar


@eqx.filter_jit
def _from_the_dual(a: Array, b: Array, grid: Grid, epsilon: float) -> _Found:
    a, b = jax.lax.stop_gradient((a, b))
    w, v = a / jnp.sum(a), b / jnp.sum(b)
    found = plane_potential(w, v, grid, epsilon)
    f = jnp.where(jnp.all(w == v), 0, found.potential)
    phi, psi, dual = feasible(f, w, v, grid)
    plan = plan_of(f, w, v, grid, epsilon)
    value = jnp.minimum(found.value, plan.cost)
    # What is best for the value is not always best for the map.
    still = lambda z: jnp.where(jnp.all(w == v), 0, z)  # noqa: E731
    ahead = jnp.stack([f, *(still(z) for z in found.others)])
    functions, coupling, lost = best_coupling(ahead, still(found.behind), a, b, value, grid)
    doubtful = found.doubtful & ~jnp.all(w == v)
    return _Found(functions, (phi, psi), value, found.least, dual, plan, doubtful, coupling, lost)
