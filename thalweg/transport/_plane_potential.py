r"""The potential of the transport in the plane with its value and a rigorous lower bound, from the start or the end.

The dual between the cells (`_plane_dual`) is right to a few hundredths of $\sum h^2$ where T is smooth. Where T jumps
inside the mass, stretches much or the densities are rough, the ascent comes to rest early or a parabola in a cell says
little. The rigorous bound (`_lower_bound`) shows it: a value below it is wrong, one far above it is doubtful. Then the
same is done from the end, whose map often jumps less, and Sinkhorn's iteration goes on from the better of the two, on
the cells and on the nodes, which raises the bound. The value is the lesser of the two, and not below the bound.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from thalweg._types import Array, Flag, Scalar
from thalweg.states import Grid
from thalweg.transport._between_cells import between_cells
from thalweg.transport._grid_plan import swept
from thalweg.transport._lower_bound import lower_bound
from thalweg.transport._plane_dual import STEP, plane_dual

# Of the dual in the plane, as a part of W₂².
_TOLERANCE, _MAX_STEPS = 1e-6, 60
# A gain at its end that says that it has not converged, and the steps of Sinkhorn's iteration that then follow.
_ROUGH, _MORE_SWEEPS = 1e-3, 60
# A value further above the rigorous bound than this part of Σh² is doubtful, and so many steps then raise the bound.
_DOUBTFUL, _RAISING_SWEEPS = 0.15, 10


class PlanePotential(NamedTuple):
    r"""`potential`: $\varphi$ of the start, the best for a bound; `others`: two more, for a map; `behind`: one of the
    end; `value`: $W_2^2$; `least`: not above it; `doubtful`: whether the value may be off by a fifth of $\sum h^2$.
    """

    potential: Array
    others: tuple[Array, Array]
    behind: Array
    value: Scalar
    least: Scalar
    doubtful: Flag


class _Search(NamedTuple):
    potential: Array
    own: Array
    finer: Array
    behind: Array
    value: Scalar
    least: Scalar
    rough: Flag
    doubtful: Flag
    asked: Flag


def plane_potential(w: Array, v: Array, grid: Grid, epsilon: float) -> PlanePotential:
    """From the masses of the cells of the start and the end, of sum one."""
    none, zero, false = jnp.asarray(jnp.inf, w.dtype), jnp.zeros_like(w), jnp.asarray(False)
    square = sum(h**2 for h in grid.spacing)

    def ascent(w: Array, v: Array) -> tuple[Array, Scalar, Flag]:
        found = plane_dual(w / grid.cell_volume, v / grid.cell_volume, grid, _TOLERANCE, _MAX_STEPS)
        return -found.potential, found.value, found.gain > _ROUGH * jnp.abs(found.value)

    def work(search: _Search, w: Array, v: Array, stage: Array) -> _Search:
        going_on, ending = (search.potential, none, false), stage == 2
        f, value, rough = jax.lax.cond(ending, lambda: going_on, lambda: ascent(w, v))
        f = swept(f, w, v, grid, epsilon, jnp.where(ending & search.rough, _MORE_SWEEPS, 0))
        least, finer = lower_bound(f, w, v, grid, jnp.where(ending, _RAISING_SWEEPS, 0))
        other = between_cells(-f, grid, STEP)
        ahead, behind = (
            jnp.where(stage == 1, other, f),
            jnp.where(ending, search.behind, jnp.where(stage == 1, f, other)),
        )
        better = (least > search.least) | ending
        rough, value = rough | search.rough, jnp.minimum(value, search.value)
        best = jnp.maximum(least, search.least)
        doubtful = rough | (value < best) | (value - best > _DOUBTFUL * square)
        potential, own = jnp.where(better, ahead, search.potential), jnp.where(stage == 0, f, search.own)
        return _Search(
            potential, own, jnp.where(ending, finer, f), behind, value, best, rough, doubtful, search.asked | doubtful
        )

    # In a loop, to compile once. Only where the first answer is doubtful there is a second and a third stage.
    def step(search: _Search, stage_of: tuple[Array, Array, Array]) -> tuple[_Search, None]:
        wanted = (stage_of[2] == 0) | search.asked
        return jax.lax.cond(wanted, lambda: work(search, *stage_of), lambda: search), None

    start = _Search(zero, zero, zero, zero, none, -none, false, false, false)
    stages = (jnp.stack([w, v, w]), jnp.stack([v, w, v]), jnp.arange(3, dtype=jnp.int32))
    found, _ = jax.lax.scan(step, start, stages)
    # Even a translation is above the bound by twice this.
    value = jnp.maximum(found.value, jnp.maximum(found.least + square / 24, 0))
    return PlanePotential(found.potential, (found.own, found.finer), found.behind, value, found.least, found.doubtful)
