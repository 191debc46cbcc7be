"""Pictures of densities on grids: curves on the line, heat maps in the plane, marginals beyond."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import PowerNorm

from thalweg.plotting._states import (
    AbstractPicture,
    Saves,
    View,
    draw_reference_contours,
    picture_of,
    reference_curve,
    time_bar,
)
from thalweg.plotting._style import DENSITY_MAP, DOTTED, FILL, PATH, REFERENCE, START, number
from thalweg.states import Grid, GridDensity

_NUM_CURVES = 8
_NUM_MAPS = 4
# Cells whose density is everywhere below this part of its largest value are outside the picture.
_NEGLIGIBLE = 1e-3


class CurvePicture(AbstractPicture):
    """A density on the line as a curve."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        x, values = _centres(state.grid, 0), np.asarray(state.values)
        ax.fill_between(x, values, color=FILL, alpha=0.5, linewidth=0)
        ax.plot(x, values, color=PATH, label="density")
        self._finish(ax, [values], x, view)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        ax = figure.subplots()
        chosen = saves.choose(_NUM_CURVES)
        x = _centres(saves.state(0).grid, 0)
        curves = [np.asarray(saves.state(index).values) for index in chosen]
        colours = time_bar(figure, ax, saves, chosen)
        for place, (values, colour) in enumerate(zip(curves, colours, strict=True)):
            first, last = place == 0, place == len(curves) - 1
            label = "start" if first else "end" if last else None
            style, width = ("--", 1.7) if first else ("-", 2.2) if last else ("-", 1.3)
            ax.plot(x, values, color=START if first else colour, linestyle=style, linewidth=width, label=label)
        self._finish(ax, curves, x, view)
        ax.set_title("Density")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        x = _centres(saves.state(0).grid, 0)
        curves = [np.asarray(saves.state(index).values) for index in chosen]
        ax.plot(x, curves[0], color=START, linestyle="--", linewidth=1.3, label="start")
        (line,) = ax.plot(x, curves[0], color=PATH, linewidth=2.0, label="now")
        self._finish(ax, curves, x, view)

        def update(index: int) -> None:
            line.set_ydata(np.asarray(saves.state(index).values))

        return update

    def _finish(self, ax: Any, curves: list[np.ndarray], x: np.ndarray, view: View) -> None:
        exact = reference_curve(view.reference, x)
        if exact is not None:
            ax.plot(*exact, color=REFERENCE, linestyle=DOTTED, linewidth=2.0, label="reference")
            curves = [*curves, *([exact[1]] if exact[1].shape == x.shape else [])]
        largest = np.max(curves, axis=0)
        inside = x[largest > _NEGLIGIBLE * largest.max()]
        margin = 0.04 * (inside[-1] - inside[0]) + (x[1] - x[0])
        ax.set_xlim(max(x[0], inside[0] - margin), min(x[-1], inside[-1] + margin))
        ax.set_ylim(0, 1.06 * largest.max())
        ax.set(xlabel=view.name(0), ylabel="density")
        ax.legend(loc="best")


class MapPicture(AbstractPicture):
    """A density in the plane as a heat map; in more dimensions, the marginal of two coordinates."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        values, axes = _marginal(state, view)
        scale = _scale([values])
        _bar(ax.figure, ax, _show(ax, values, state.grid, axes, view, scale), scale)
        window = _window([values], state.grid, axes)
        ax.set(xlim=window[0], ylim=window[1])
        if self._reference(ax, state.grid, axes, view):
            ax.set_title("Lines: reference", fontsize=9.5)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        chosen = saves.choose(_NUM_MAPS)
        first = saves.state(0)
        maps, axes = [], view.axes_of(first.dim)
        for index in chosen:
            maps.append(_marginal(saves.state(index), view)[0])
        scale = _scale(maps)
        rows, columns = panels(figure, len(chosen))
        grid_of_axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        image = None
        for place, ax in enumerate(grid_of_axes.ravel()):
            if place >= len(chosen):
                ax.set_visible(False)
                continue
            image = _show(ax, maps[place], first.grid, axes, view, scale)
            is_cut = maps[place].max() > scale.norm.vmax
            peak = f", peak {number(maps[place].max(), 3)}" if is_cut else ""
            has_lines = place == len(chosen) - 1 and self._reference(ax, first.grid, axes, view)
            ax.set_title(saves.stamp(chosen[place]) + peak + (", lines: reference" if has_lines else ""), fontsize=9.5)
            ax.label_outer()
        window = _window(maps, first.grid, axes)
        grid_of_axes[0, 0].set(xlim=window[0], ylim=window[1])
        _bar(figure, grid_of_axes, image, scale)

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        first = saves.state(0)
        axes = view.axes_of(first.dim)
        maps = [_marginal(saves.state(index), view)[0] for index in chosen]
        scale = _scale(maps)
        image = _show(ax, maps[0], first.grid, axes, view, scale)
        window = _window(maps, first.grid, axes)
        ax.set(xlim=window[0], ylim=window[1])
        self._reference(ax, first.grid, axes, view)
        _bar(ax.figure, ax, image, scale)

        def update(index: int) -> None:
            image.set_data(_marginal(saves.state(index), view)[0].T)

        return update

    def _reference(self, ax: Any, grid: Grid, axes: tuple[int, ...], view: View) -> bool:
        if grid.dim != 2 or axes != (0, 1):
            return False
        reference = view.reference
        if hasattr(reference, "shape") and np.shape(reference) == grid.shape:
            reference = GridDensity.normalised(reference, grid)
        window = ((grid.lower[axes[0]], grid.upper[axes[0]]), (grid.lower[axes[1]], grid.upper[axes[1]]))
        return draw_reference_contours(ax, reference, window)


@picture_of.register
def _(state: GridDensity) -> AbstractPicture:
    return CurvePicture() if state.dim == 1 else MapPicture()


def panels(figure: Any, num: int) -> tuple[int, int]:
    """Rows and columns of `num` panels: side by side in a wide figure, in two rows in a narrower one."""
    wide = figure.bbox.width > 2.2 * figure.bbox.height
    return (1, num) if wide or num <= 2 else (2, -(-num // 2))


def _centres(grid: Grid, axis: int) -> np.ndarray:
    return np.asarray(grid.axis_centres(axis), np.float64)


def _marginal(state: Any, view: View) -> tuple[np.ndarray, tuple[int, ...]]:
    axes = view.axes_of(state.dim)
    values = np.asarray(state.values, np.float64)
    others = tuple(axis for axis in range(state.dim) if axis not in axes)
    values = values.sum(axis=others) * float(np.prod([state.grid.spacing[axis] for axis in others]))
    return (values if axes[0] < axes[1] else values.T), axes


class _Scale(NamedTuple):
    """How densities become colours: `norm`, the label of the bar, and whether some are above its end."""

    norm: PowerNorm
    label: str
    extend: str


def _scale(maps: list[np.ndarray]) -> _Scale:
    # A peaked start would leave the later maps pale. The square root shows small values too, and the darkest colour
    # stands for all that is above the peak of the later half; the bar says both.
    peaks = [float(values.max()) for values in maps]
    largest = max(peaks[len(peaks) // 2 :])
    wide = max(peaks) > 3 * min(peaks)
    label = "density, colours by its square root" if wide else "density"
    norm = PowerNorm(0.5 if wide else 1.0, vmin=0.0, vmax=largest)
    return _Scale(norm, label, "max" if max(peaks) > largest * (1 + 1e-6) else "neither")


def _bar(figure: Any, axes: Any, image: Any, scale: _Scale) -> None:
    bar = figure.colorbar(image, ax=axes, label=scale.label, extend=scale.extend, fraction=0.045, pad=0.02)
    bar.outline.set_visible(False)


def _show(ax: Any, values: np.ndarray, grid: Grid, axes: tuple[int, ...], view: View, scale: _Scale) -> Any:
    first, second = axes
    extent = (grid.lower[first], grid.upper[first], grid.lower[second], grid.upper[second])
    image = ax.imshow(
        values.T,
        origin="lower",
        extent=extent,
        aspect="auto",
        norm=scale.norm,
        cmap=DENSITY_MAP,
        interpolation="nearest",
    )
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.set(xlabel=view.name(first), ylabel=view.name(second))
    return image


def _window(maps: list[np.ndarray], grid: Grid, axes: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """The part of the grid where any of the maps is not negligible."""
    largest = np.max(maps, axis=0)
    sides = []
    for place, axis in enumerate(axes):
        profile = largest.max(axis=1 - place)
        inside = np.flatnonzero(profile > _NEGLIGIBLE * profile.max())
        low, high, h = grid.lower[axis], grid.upper[axis], grid.spacing[axis]
        margin = 0.03 * (high - low)
        sides.append((max(low, low + inside[0] * h - margin), min(high, low + (inside[-1] + 1) * h + margin)))
    return tuple(sides)
