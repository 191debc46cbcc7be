"""Pictures of vectors and pytrees: a trajectory over the contour lines of its energy, components against time."""

import time as clock
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize

from thalweg.plotting._states import AbstractPicture, Saves, View, is_wide
from thalweg.plotting._style import (
    CATEGORIES,
    DOTTED,
    FILL,
    GRID,
    MUTED,
    PATH,
    REFERENCE,
    START,
    TIME_MAP,
    legend,
    plain,
)
from thalweg.states import Parametric

# Lines that can be told apart in one panel.
_MOST_LINES = 8
# Components whose sizes differ by more than this are drawn relative to where they end.
_SCALES_DIFFER = 50.0
# Contour lines may cost this long to compute, in seconds.
_CONTOUR_SECONDS = 2.0
_CONTOUR_POINTS = 121


class Components(NamedTuple):
    """The numbers of a state, one column each: `values` of shape `(num_saves, num_components)`, and their names."""

    values: np.ndarray
    names: list[str]


class VectorPicture(AbstractPicture):
    """A vector: a point of the plane if it has two entries, else one line for each component."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        values, names = components(state, view, symbol="x")
        if values.shape[1] == 2:
            reference = reference_point(view, values.shape[1])
            points = values if reference is None else np.concatenate([values, reference[None]])
            # A single point has no extent: a window of its own size, or one, shows where it lies.
            around = max(float(np.ptp(points, axis=0).max()), 0.5 * float(np.abs(points).max()), 1e-6)
            window = _around(np.concatenate([points - 0.5 * around, points + 0.5 * around]))
            draw_contours(ax, state, view.energy, window)
            ax.plot(*values[0], "o", color=PATH, markersize=7, zorder=4)
            _mark_reference(ax, reference)
            ax.set(xlim=window[0], ylim=window[1], xlabel=names[0], ylabel=names[1])
            return
        shown = range(min(values.shape[1], 40))
        ax.bar([*shown], values[0, : len(shown)], color=PATH)
        ax.set_xticks([*shown], [names[i] for i in shown], rotation=90 if len(shown) > 8 else 0)
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.set(xlabel="component", ylabel="value")

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        parts = components(saves.path.states, view, symbol="x", has_saves=True)
        reference = reference_point(view, parts.values.shape[1])
        if parts.values.shape[1] != 2:
            draw_components(figure.subplots(), saves, parts, reference)
            return
        left, *others = figure.subplots(1, 2, width_ratios=(1.15, 1)) if is_wide(figure) else [figure.subplots()]
        _draw_trajectory(left, saves, parts, reference, view)
        left.set_title("Trajectory")
        for right in others:
            draw_components(right, saves, parts, reference)

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        parts = components(saves.path.states, view, symbol="x", has_saves=True)
        reference = reference_point(view, parts.values.shape[1])
        if parts.values.shape[1] != 2:
            return animate_components(ax, saves, parts, reference)
        values = parts.values
        window = _around(values if reference is None else np.concatenate([values, reference[None]]))
        draw_contours(ax, saves.state(0), view.energy, window)
        ax.plot(*values.T, color=FILL, linewidth=1.2)
        (passed,) = ax.plot([], [], color=PATH, linewidth=1.9)
        (dot,) = ax.plot([], [], "o", color=PATH, markersize=7, zorder=4)
        ax.plot(*values[0], "o", markerfacecolor="white", markeredgecolor=START, markersize=6)
        _mark_reference(ax, reference)
        ax.set(xlim=window[0], ylim=window[1], xlabel=parts.names[0], ylabel=parts.names[1])

        def update(index: int) -> None:
            passed.set_data(*values[: index + 1].T)
            dot.set_data(*values[index : index + 1].T)

        return update


def components(state: Any, view: View, *, symbol: str, has_saves: bool = False) -> Components:
    """The floating-point numbers of a state (or of all saves of a path) as columns with names."""
    columns, names = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(state, eqx.is_inexact_array)):
        array = np.asarray(leaf, np.float64)
        array = array if has_saves else array[None]
        columns.append(array.reshape(array.shape[0], -1))
        owner = plain(jax.tree_util.keystr(path, simple=True, separator="."))
        for place in np.ndindex(array.shape[1:]):
            entry = ",".join(str(i + 1) for i in place)
            if owner:
                names.append(owner + (f"[{','.join(map(str, place))}]" if place else ""))
            else:
                names.append(f"${symbol}_{{{entry}}}$" if place else f"${symbol}$")
    values = np.concatenate(columns, axis=1)
    if view.names is not None and len(view.names) == values.shape[1]:
        names = [plain(name) for name in view.names]
    return Components(values, names)


def draw_components(ax: Any, saves: Saves, parts: Components, reference: np.ndarray | None) -> None:
    """Components against time: all of a few, or those that moved most; relative where their sizes differ."""
    values, reference, label = _relative(parts.values, reference)
    moved = np.ptp(values, axis=0)
    shown = np.sort(np.argsort(-moved, kind="stable")[:_MOST_LINES])
    for place, column in enumerate(shown):
        colour = CATEGORIES[place % len(CATEGORIES)]
        ax.plot(saves.times, values[:, column], color=colour, label=parts.names[column], **_markers(len(saves)))
        if reference is not None and "relative" not in label:
            ax.axhline(reference[column], color=colour, linestyle=DOTTED, linewidth=1.2)
    if reference is not None and "relative" in label:
        if np.abs(values).max() > _SCALES_DIFFER:
            # A start far away would press the rest onto one line.
            ax.set_yscale("symlog", linthresh=2.0)
        ax.axhline(1.0, color=REFERENCE, linestyle=DOTTED, linewidth=1.6, label="reference")
    elif reference is not None:
        ax.plot([], [], color=MUTED, linestyle=DOTTED, linewidth=1.4, label="reference")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.4)
    ax.set(xlabel=saves.time_label, ylabel=label)
    count = values.shape[1]
    ax.set_title("Components" if count <= _MOST_LINES else f"The {_MOST_LINES} of {count} components that moved most")


def animate_components(ax: Any, saves: Saves, parts: Components, reference: np.ndarray | None) -> Callable[[int], None]:
    """The components, with a line that marks the present."""
    draw_components(ax, saves, parts, reference)
    ax.set_title("")
    now = ax.axvline(saves.times[0], color=MUTED, linewidth=1.2)

    def update(index: int) -> None:
        now.set_xdata([saves.times[index]] * 2)

    return update


def draw_contours(ax: Any, state: Any, energy: Any, window: tuple[tuple[float, float], ...]) -> None:
    """Contour lines of an energy of two numbers, closer near its lowest value; nothing if it is unknown or slow."""
    if energy is None:
        return
    flat, unravel = ravel_pytree(eqx.filter(state, eqx.is_inexact_array))
    x, y = (np.linspace(*side, _CONTOUR_POINTS) for side in window)
    points = jnp.asarray(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2), flat.dtype)
    evaluate = jax.jit(jax.vmap(lambda point: energy(eqx.combine(unravel(point), state))))
    few = len(points) // 50
    np.asarray(evaluate(points[:few]))
    started = clock.perf_counter()
    np.asarray(evaluate(points[:few]))
    if (clock.perf_counter() - started) * 50 > _CONTOUR_SECONDS:
        return
    values = np.asarray(evaluate(points), np.float64).reshape(len(y), len(x))
    lowest = np.nanmin(values)
    spread = np.nanmax(values) - lowest
    if not (np.isfinite(spread) and spread > 0):
        return
    # Equal steps of the fourth root of the excess: lines in the flat valley and on the steep slope alike.
    levels = lowest + spread * np.linspace(0.1, 1, 14) ** 4
    shades = ax.contourf(
        x, y, ((values - lowest) / spread) ** 0.25, levels=15, cmap="Greys", vmin=0, vmax=3.2, zorder=0
    )
    shades.set_rasterized(True)
    ax.contour(x, y, values, levels=levels, colors="#b6c1cd", linewidths=0.7, zorder=1)
    ax.grid(False)


def _draw_trajectory(ax: Any, saves: Saves, parts: Components, reference: np.ndarray | None, view: View) -> None:
    values = parts.values
    window = _around(values if reference is None else np.concatenate([values, reference[None]]))
    draw_contours(ax, saves.state(0), view.energy, window)
    # Colour counts the length travelled, since nearly all of it may happen in the first moments.
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(values, axis=0), axis=1))])
    segments = np.stack([values[:-1], values[1:]], axis=1)
    lines = LineCollection(list(segments), cmap=TIME_MAP, norm=Normalize(0, max(lengths[-1], 1e-300)), linewidths=2)
    lines.set_array(0.5 * (lengths[:-1] + lengths[1:]))
    ax.add_collection(lines)
    if len(values) <= 60:
        ax.plot(*values[1:-1].T, "o", color=PATH, markersize=2.5, linestyle="none")
    ax.plot(*values[0], "o", markerfacecolor="white", markeredgecolor=PATH, markersize=7, zorder=4, label="start")
    ax.plot(*values[-1], "o", color=PATH, markersize=7, zorder=4, label="end")
    _mark_reference(ax, reference)
    ax.set(xlim=window[0], ylim=window[1], xlabel=parts.names[0], ylabel=parts.names[1])
    legend(ax, len(values), frameon=True, facecolor="white", edgecolor=GRID, framealpha=0.9)


def _mark_reference(ax: Any, reference: np.ndarray | None) -> None:
    if reference is not None:
        ax.plot(
            *reference,
            "*",
            color=REFERENCE,
            markeredgecolor="white",
            markersize=13,
            zorder=5,
            label="reference",
            linestyle="none",
        )


def reference_point(view: View, size: int) -> np.ndarray | None:
    """The reference as so many numbers; `None` if it is something else."""
    if view.reference is None:
        return None
    given = view.reference.params if isinstance(view.reference, Parametric) else view.reference
    leaves = jax.tree.leaves(eqx.filter(given, eqx.is_array_like))
    flat = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves]) if leaves else np.zeros(0)
    return flat if flat.size == size else None


def _relative(values: np.ndarray, reference: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    scale = values[-1] if reference is None else reference
    sizes = np.abs(scale)
    if sizes.size < 2 or sizes.min() == 0 or sizes.max() < _SCALES_DIFFER * sizes.min():
        return values, reference, "value"
    what = "last value" if reference is None else "reference"
    return values / scale, None if reference is None else np.ones_like(scale), f"value relative to its {what}"


def _around(points: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """A window that holds all points with a margin, and is not thinner than a tenth of its length."""
    lower, upper = points.min(axis=0), points.max(axis=0)
    centre, span = 0.5 * (lower + upper), float((upper - lower).max())
    # What does not move, or only by rounding, is shown in a window of its own size.
    largest = max(float(np.abs(centre).max()), 1e-12)
    size = np.maximum(upper - lower, 0.1 * span if span > 1e-6 * largest else largest)
    low, high = centre - 0.6 * size, centre + 0.6 * size
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def _markers(count: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 3} if count <= 40 else {}
