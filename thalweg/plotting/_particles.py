"""Pictures of particles: a histogram on the line, a cloud in the plane of two coordinates."""

from collections.abc import Callable
from typing import Any

import numpy as np

from thalweg.plotting._grids import panels
from thalweg.plotting._states import AbstractPicture, Saves, View, draw_reference_contours, picture_of, reference_curve
from thalweg.plotting._style import DOTTED, FILL, MUTED, PATH, REFERENCE, START
from thalweg.states import Particles
from thalweg.targets import Samples

_NUM_CLOUDS = 4
# The frame holds the last particles, less a few that stray far, and the bulk of the others; it says how many are not
# in it.
_INSIDE_LAST, _INSIDE = 0.995, 0.9


class HistogramPicture(AbstractPicture):
    """Particles on the line."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        edges = _edges([state])
        ax.stairs(_heights(state, edges), edges, fill=True, color=FILL, edgecolor=PATH, label="particles")
        self._finish(ax, edges, view)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        ax = figure.subplots()
        first, last = saves.state(0), saves.state(len(saves) - 1)
        edges = _edges([first, last])
        ax.stairs(_heights(last, edges), edges, fill=True, color=FILL, edgecolor=PATH, label="end")
        ax.stairs(_heights(first, edges), edges, color=START, linestyle="--", linewidth=1.5, label="start")
        self._finish(ax, edges, view)
        ax.set_title(f"{first.num_particles} particles")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        states = [saves.state(index) for index in chosen]
        edges = _edges([states[0], states[-1]])
        heights = [_heights(state, edges) for state in states]
        ax.stairs(heights[0], edges, color=START, linestyle="--", linewidth=1.3, label="start")
        bars = ax.stairs(heights[0], edges, fill=True, color=FILL, edgecolor=PATH, label="now")
        self._finish(ax, edges, view)
        ax.set_ylim(0, 1.06 * max(float(h.max()) for h in heights))

        def update(index: int) -> None:
            bars.set_data(values=_heights(saves.state(index), edges))

        return update

    def _finish(self, ax: Any, edges: np.ndarray, view: View) -> None:
        exact = reference_curve(view.reference, np.linspace(edges[0], edges[-1], 401))
        if isinstance(view.reference, Samples) and view.reference.values.shape[1] == 1:
            heights, _ = np.histogram(np.asarray(view.reference.values)[:, 0], edges, density=True)
            ax.stairs(heights, edges, color=REFERENCE, linewidth=1.4, label="reference samples")
        elif exact is not None:
            ax.plot(*exact, color=REFERENCE, linestyle=DOTTED, linewidth=2.0, label="reference")
        ax.set_xlim(edges[0], edges[-1])
        ax.set(xlabel=view.name(0), ylabel="density")
        ax.legend(loc="best")


class CloudPicture(AbstractPicture):
    """Particles in the plane of two coordinates."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        axes = view.axes_of(state.dim)
        window = _window([state], axes)
        _reference(ax, view, axes, state.dim, window)
        _cloud(ax, state, axes, label="particles")
        _count_outside(ax, state, axes, window)
        _label(ax, view, axes, window)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        chosen = saves.choose(_NUM_CLOUDS, time_share=0.5)
        states = [saves.state(index) for index in chosen]
        axes = view.axes_of(states[0].dim)
        window = _window(states, axes)
        grid_of_axes = figure.subplots(*panels(figure, len(chosen)), sharex=True, sharey=True, squeeze=False)
        for ax, index, state in zip(grid_of_axes.ravel(), chosen, states, strict=False):
            has_reference = _reference(ax, view, axes, state.dim, window)
            _cloud(ax, state, axes)
            _count_outside(ax, state, axes, window)
            _label(ax, view, axes, window)
            ax.set_title(
                saves.stamp(index) + (", lines: reference" if has_reference and index == chosen[-1] else ""),
                fontsize=9.5,
            )
            ax.label_outer()
        for ax in grid_of_axes.ravel()[len(chosen) :]:
            ax.set_visible(False)

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        states = [saves.state(index) for index in chosen]
        axes = view.axes_of(states[0].dim)
        window = _window(states, axes)
        _reference(ax, view, axes, states[0].dim, window)
        cloud = _cloud(ax, states[0], axes, label="particles")
        _label(ax, view, axes, window)
        ax.legend(loc="upper right")

        def update(index: int) -> None:
            state = saves.state(index)
            cloud.set_offsets(np.asarray(state.positions)[:, axes])
            cloud.set_sizes(_sizes(state))

        return update


@picture_of.register
def _(state: Particles) -> AbstractPicture:
    return HistogramPicture() if state.dim == 1 else CloudPicture()


def _weights(state: Any) -> np.ndarray:
    return np.asarray(state.weights, np.float64)


def _edges(states: list[Any]) -> np.ndarray:
    """Edges of bins over all states: 2 N^(1/3) of them (Rice's rule), at most 80."""
    everything = np.concatenate([np.asarray(state.positions)[:, 0] for state in states])
    low, high = float(everything.min()), float(everything.max())
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    num_bins = int(np.clip(2 * states[-1].num_particles ** (1 / 3), 8, 80))
    return np.linspace(low, high, num_bins + 1)


def _heights(state: Any, edges: np.ndarray) -> np.ndarray:
    mass, _ = np.histogram(np.asarray(state.positions)[:, 0], edges, weights=_weights(state))
    return mass / np.diff(edges)


def _window(states: list[Any], axes: tuple[int, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    sides = []
    for axis in axes:
        columns = [np.asarray(state.positions, np.float64)[:, axis] for state in states]
        shares = [_INSIDE] * (len(columns) - 1) + [_INSIDE_LAST]
        limits = [np.quantile(x, [0.5 - s / 2, 0.5 + s / 2]) for x, s in zip(columns, shares, strict=True)]
        low, high = float(np.min(limits)), float(np.max(limits))
        everything = np.concatenate(columns)
        if np.ptp(everything) < 1.3 * (high - low):
            low, high = float(everything.min()), float(everything.max())
        margin = 0.06 * (high - low) or 1.0
        sides.append((low - margin, high + margin))
    return sides[0], sides[1]


def _sizes(state: Any) -> np.ndarray:
    """Areas of the dots: smaller where there are many, proportional to the weights."""
    area = np.clip(9000.0 / state.num_particles, 2.0, 22.0)
    return area * _weights(state) * state.num_particles


def _cloud(ax: Any, state: Any, axes: tuple[int, ...], label: str | None = None) -> Any:
    positions = np.asarray(state.positions)[:, axes]
    alpha = float(np.clip(600.0 / state.num_particles, 0.2, 0.7))
    return ax.scatter(*positions.T, s=_sizes(state), color=PATH, alpha=alpha, linewidths=0, label=label, zorder=2)


def _reference(ax: Any, view: View, axes: tuple[int, ...], dim: int, window: Any) -> bool:
    """Contour lines of the reference density in the plane; `True` if there are any. Samples of it are pale dots."""
    if isinstance(view.reference, Samples):
        values = np.asarray(view.reference.values)[:2000][:, axes]
        ax.scatter(*values.T, s=4, color=REFERENCE, alpha=0.25, linewidths=0, label="reference samples", zorder=1)
        return False
    if dim != 2 or axes != (0, 1) or not draw_reference_contours(ax, view.reference, window):
        return False
    ax.plot([], [], color=REFERENCE, linewidth=0.9, label="reference")
    return True


def _count_outside(ax: Any, state: Any, axes: tuple[int, ...], window: Any) -> None:
    positions = np.asarray(state.positions)[:, axes]
    lower, upper = np.array(window).T
    outside = int(np.sum(np.any((positions < lower) | (positions > upper), axis=1)))
    if outside:
        text = f"{outside} of {len(positions)} outside"
        ax.text(0.03, 0.03, text, transform=ax.transAxes, fontsize=7.5, color=MUTED, bbox=_PAPER)


_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5}


def _label(ax: Any, view: View, axes: tuple[int, ...], window: Any) -> None:
    ax.set(xlim=window[0], ylim=window[1], xlabel=view.name(axes[0]), ylabel=view.name(axes[1]))
