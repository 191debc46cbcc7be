"""Pictures of functions on grids: curves over the line, heat maps over the plane."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.plotting._grids import panels
from thalweg.plotting._states import AbstractPicture, Saves, View, picture_of, time_bar
from thalweg.plotting._style import DENSITY_MAP, DOTTED, PATH, REFERENCE, START
from thalweg.states import GridFunction

_NUM_CURVES = 8
_NUM_MAPS = 4


class FunctionPicture(AbstractPicture):
    """A function of one variable as a curve through its nodes."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        ax.plot(*_curve(state), color=PATH, label="function")
        self._finish(ax, view, state)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        ax = figure.subplots()
        chosen = saves.choose(_NUM_CURVES)
        for place, (index, colour) in enumerate(zip(chosen, time_bar(figure, ax, saves, chosen), strict=True)):
            first, last = place == 0, place == len(chosen) - 1
            label = "start" if first else "end" if last else None
            style, width = ("--", 1.7) if first else ("-", 2.2) if last else ("-", 1.3)
            colour = START if first else colour
            ax.plot(*_curve(saves.state(index)), color=colour, linestyle=style, linewidth=width, label=label)
        self._finish(ax, view, saves.state(0))
        ax.set_title("Function")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        curves = [_curve(saves.state(index)) for index in chosen]
        ax.plot(*curves[0], color=START, linestyle="--", linewidth=1.3, label="start")
        (line,) = ax.plot(*curves[0], color=PATH, linewidth=2.0, label="now")
        self._finish(ax, view, saves.state(0))
        low, high = min(y.min() for _, y in curves), max(y.max() for _, y in curves)
        margin = 0.05 * (high - low) + 1e-12
        ax.set_ylim(low - margin, high + margin)

        def update(index: int) -> None:
            line.set_ydata(_curve(saves.state(index))[1])

        return update

    def _finish(self, ax: Any, view: View, state: Any) -> None:
        x = _curve(state)[0]
        reference = _reference(view.reference, x[:, None])
        if reference is not None:
            ax.plot(x, reference, color=REFERENCE, linestyle=DOTTED, linewidth=2.0, label="reference")
        ax.set(xlabel=view.name(0) if view.names is not None else "$x$", ylabel="$y(x)$")
        ax.legend(loc="best")


class SurfacePicture(AbstractPicture):
    """A function of two variables as a heat map with level lines; those of a reference are dotted."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        values = np.asarray(state.nodal_values)
        mesh = self._show(ax, state, values, (values.min(), values.max()), view)
        ax.figure.colorbar(mesh, ax=ax, label="$u(x)$", fraction=0.045, pad=0.02).outline.set_visible(False)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        chosen = saves.choose(_NUM_MAPS)
        maps = [np.asarray(saves.state(index).nodal_values) for index in chosen]
        limits = min(values.min() for values in maps), max(values.max() for values in maps)
        axes = figure.subplots(*panels(figure, len(chosen)), sharex=True, sharey=True, squeeze=False)
        mesh = None
        for place, ax in enumerate(axes.ravel()):
            if place >= len(chosen):
                ax.set_visible(False)
                continue
            last = View(reference=view.reference if place == len(chosen) - 1 else None, names=view.names)
            mesh = self._show(ax, saves.state(0), maps[place], limits, last)
            ax.set_title(saves.stamp(chosen[place]), fontsize=9.5)
            ax.label_outer()
        figure.colorbar(mesh, ax=axes, label="$u(x)$", fraction=0.045, pad=0.02).outline.set_visible(False)

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        maps = [np.asarray(saves.state(index).nodal_values) for index in chosen]
        limits = min(values.min() for values in maps), max(values.max() for values in maps)
        mesh = self._show(ax, saves.state(0), maps[0], limits, view, lines=False)
        ax.figure.colorbar(mesh, ax=ax, label="$u(x)$", fraction=0.045, pad=0.02).outline.set_visible(False)

        def update(index: int) -> None:
            mesh.set_array(np.asarray(saves.state(index).nodal_values).T)

        return update

    def _show(
        self, ax: Any, state: Any, values: np.ndarray, limits: tuple[Any, Any], view: View, lines: bool = True
    ) -> Any:
        nodes = np.asarray(state.nodes)
        x, y = nodes[:, 0, 0], nodes[0, :, 1]
        mesh = ax.pcolormesh(x, y, values.T, shading="gouraud", cmap=DENSITY_MAP, vmin=limits[0], vmax=limits[1])
        if limits[1] > limits[0]:
            levels = np.linspace(*limits, 9)[1:-1]
            if lines and np.any((values.min() < levels) & (levels < values.max())):
                ax.contour(x, y, values.T, levels=levels, colors=PATH, linewidths=0.7)
            exact = _reference(view.reference, nodes.reshape(-1, 2))
            if exact is not None and np.any((exact.min() < levels) & (levels < exact.max())):
                exact = exact.reshape(values.shape)
                ax.contour(x, y, exact.T, levels=levels, colors=REFERENCE, linewidths=1.6, linestyles=[DOTTED])
        ax.grid(False)
        ax.set(xlabel=view.name(0), ylabel=view.name(1))
        return mesh


@picture_of.register
def _(state: GridFunction) -> AbstractPicture:
    return FunctionPicture() if state.dim == 1 else SurfacePicture()


def _curve(state: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(state.nodes, np.float64)[:, 0], np.asarray(state.nodal_values, np.float64)


def _reference(reference: Any, points: np.ndarray) -> np.ndarray | None:
    """A reference at the points: another function of one point, or its values at all nodes."""
    if reference is None:
        return None
    if callable(reference):
        found = jax.vmap(lambda point: jnp.asarray(reference(point)).reshape(()))
        return np.asarray(jax.jit(found)(jnp.asarray(points)), np.float64)
    values = np.asarray(reference, np.float64)
    return values.reshape(-1) if values.size == len(points) else None
