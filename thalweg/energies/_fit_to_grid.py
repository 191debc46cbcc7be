"""Whether an energy makes sense at a density on a grid: what would be NaN or infinite there is said, by its cell."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._types import Array, State
from thalweg.energies._base import AbstractEnergy
from thalweg.energies._decompose import Decomposition, Term, decompose
from thalweg.energies._divergence import FDivergence
from thalweg.energies._gradients import FisherInformation
from thalweg.energies._grid_target import GridTarget
from thalweg.energies._perspective import perspective
from thalweg.states import Grid, GridDensity, displacement, kernel_values


def check_on_grid(energy: AbstractEnergy, state: GridDensity) -> None:
    """Raise `ValueError` if an energy has no finite value at a density on a grid, naming the cell.

    The potential may be $+\\infty$ (a wall) in cells without mass.
    """
    structure = decompose(energy)
    if structure.potential:
        _check_potential(structure, state)
    for term in structure.interaction:
        _check_kernel(term, state.grid)
    for term in (*structure.local, *structure.remainder):
        _check_target(term.energy, state)
    if structure.ceiling is not None:
        _check_ceiling(structure.ceiling, state)


def with_walls(energy: AbstractEnergy, state: State) -> State:
    """The state with the cells left out of its grid where the potential is infinite, so that no scheme meets the
    infinity; a state without such cells, or of another kind, as it is. (A potential that is traced cannot be looked
    at.)
    """
    if not isinstance(state, GridDensity) or _tree.is_traced(state.values):
        return state
    structure = decompose(energy)
    potential = _known(_on_cells(structure, state)) if structure.potential else None
    if potential is None or not np.any(potential == np.inf):
        return state
    kept = potential != np.inf
    return GridDensity(jnp.where(kept, state.values, 0), state.grid.masked(kept))


def _check_potential(structure: Decomposition, state: GridDensity) -> None:
    potential = _known(_on_cells(structure, state))
    if potential is None:
        return
    bad = np.isnan(potential) | (potential == -np.inf)
    if np.any(bad):
        raise ValueError(
            f"The potential must be a number at every cell (or +inf, a wall); it is {float(potential[bad][0])} at "
            f"{_cells(bad, state.grid)}.\nChoose `lower` and `upper` inside its domain, or leave those cells out: "
            "`grid.masked(mask)`."
        )
    # A denormal remnant of a tail is no mass.
    values = np.asarray(state.values)
    in_wall = (potential == np.inf) & (values > np.finfo(values.dtype).tiny)
    if np.any(in_wall):
        raise ValueError(
            f"`initial_state` has mass where the potential is infinite (a wall, or a target without density): at "
            f"{_cells(in_wall, state.grid)}.\nStart from a density that is zero there, or leave those cells out: "
            "`grid.masked(mask)`."
        )


def _check_kernel(term: Term, grid: Grid) -> None:
    kernel = term.function
    if hasattr(kernel, "fourier_symbol") and all(grid.is_periodic(axis) for axis in range(grid.dim)):
        return
    values = _known(_kernel(kernel, grid))
    if values is None:
        return
    bad = ~np.isfinite(values)
    if not np.any(bad):
        return
    index = tuple(int(i) for i in np.argwhere(bad)[0])
    advice = "It must be finite at every displacement between cells."
    if bad.sum() == 1 and not any(index):
        advice = (
            "A kernel that is infinite at zero must know its mean over a cell: use `tw.kernels.newtonian(dim)` or\n"
            "`tw.kernels.attractive_repulsive(a, b)`, or give yours a method `cell_average(spacing)`."
        )
    raise ValueError(
        f"The interaction kernel is {float(values[index])} at {int(bad.sum())} of {bad.size} displacements, first at "
        f"{displacement(grid, index)}.\n{advice}"
    )


def _check_target(energy: Any, state: GridDensity) -> None:
    target = getattr(energy, "target", None)
    if not isinstance(target, GridTarget) or not isinstance(energy, FDivergence | FisherInformation):
        return
    form = perspective(energy.generator) if isinstance(energy, FDivergence) else None
    infinite = form is None if isinstance(energy, FisherInformation) else form is not None and np.isinf(form.at_zero)
    known = _known(target.density.values)
    if known is None or not infinite:
        return
    outside = (known <= 0) & (np.asarray(state.values) > 0)
    if np.any(outside):
        raise ValueError(
            f"`{type(energy).__name__}` is infinite where the target is zero and the density is not: at "
            f"{_cells(outside, state.grid)}.\nStart from a density that is zero there, or use a divergence with finite "
            "f(0), such as forward KL or Jensen–Shannon."
        )


def _check_ceiling(ceiling: Any, state: GridDensity) -> None:
    if _tree.is_traced(ceiling):
        return
    grid, values, ceiling = state.grid, np.asarray(state.values), float(ceiling)
    cells = grid.num_cells if grid.mask is None else int(grid.mask.sum())
    room = ceiling * cells * grid.cell_volume
    mass = float(values.sum()) * grid.cell_volume
    if room < mass * (1 - 1e-12):
        raise ValueError(
            f"A density below the ceiling {ceiling:.4g} has no room for its mass: the domain holds {room:.4g}, and the "
            f"mass is {mass:.4g}.\nRaise the ceiling or enlarge the domain."
        )
    above = values > ceiling * (1 + 64 * np.finfo(values.dtype).eps)
    if np.any(above):
        raise ValueError(
            f"`initial_state` lies above the ceiling {ceiling:.4g} of `Congestion` at {_cells(above, grid)}, where it "
            f"is {float(values[above].max()):.4g} at most.\nStart from a density below it."
        )


def _cells(bad: np.ndarray, grid: Grid) -> str:
    first = np.asarray(grid.centres)[bad][0]
    return f"{int(bad.sum())} of {bad.size} cells, first at x = {[round(float(c), 4) for c in first]}"


def _known(values: Any) -> np.ndarray | None:
    return None if _tree.is_traced(values) else np.asarray(values)


@eqx.filter_jit
def _on_cells(structure: Decomposition, state: GridDensity) -> Array:
    return state.on_cells(structure.potential_value)


@eqx.filter_jit
def _kernel(kernel: Any, grid: Grid) -> Array:
    return kernel_values(kernel, grid, jnp.zeros(()).dtype)
