"""Pictures of Gaussians: curves on the line, ellipses of one and two standard deviations in the plane."""

from collections.abc import Callable
from typing import Any

import numpy as np

from thalweg.plotting._states import (
    AbstractPicture,
    Saves,
    View,
    draw_reference_contours,
    picture_of,
    reference_curve,
    time_bar,
)
from thalweg.plotting._style import DOTTED, PATH, REFERENCE, START
from thalweg.states import Gaussian

_NUM_SHOWN = 7
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 121)), np.sin(np.linspace(0, 2 * np.pi, 121))])
_SOLID, _DASHED = "-", "--"


class BellPicture(AbstractPicture):
    """A Gaussian on the line as its density."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        x = _range([state])
        ax.plot(x, _bell(state, x), color=PATH, label="density")
        self._finish(ax, x, view)

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        ax = figure.subplots()
        chosen = saves.choose(_NUM_SHOWN)
        states = [saves.state(index) for index in chosen]
        x = _range(states)
        colours = time_bar(figure, ax, saves, chosen)
        for place, (state, colour) in enumerate(zip(states, colours, strict=True)):
            look = _look(place, len(states), colour)
            ax.plot(x, _bell(state, x), **look)
        self._finish(ax, x, view)
        ax.set_title("Density")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        states = [saves.state(index) for index in chosen]
        x = _range(states)
        ax.plot(x, _bell(states[0], x), color=START, linestyle=_DASHED, linewidth=1.3, label="start")
        (line,) = ax.plot(x, _bell(states[0], x), color=PATH, linewidth=2.0, label="now")
        self._finish(ax, x, view)
        ax.set_ylim(0, 1.06 * max(float(_bell(state, x).max()) for state in states))

        def update(index: int) -> None:
            line.set_ydata(_bell(saves.state(index), x))

        return update

    def _finish(self, ax: Any, x: np.ndarray, view: View) -> None:
        exact = reference_curve(view.reference, x)
        if exact is not None:
            ax.plot(*exact, color=REFERENCE, linestyle=DOTTED, linewidth=2.0, label="reference")
        ax.set(xlabel=view.name(0), ylabel="density", xlim=(x[0], x[-1]))
        ax.set_ylim(bottom=0)
        ax.legend(loc="best")


class EllipsePicture(AbstractPicture):
    """A Gaussian in the plane of two coordinates: its mean, and what holds 39 % and 86 % of its mass."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        axes = view.axes_of(state.dim)
        window = _window(ax, [state], axes)
        _reference(ax, view, axes, state.dim, window)
        for scale, style in ((1, _SOLID), (2, _DASHED)):
            ax.plot(*_ellipse(state, axes, scale), color=PATH, linestyle=style, label=f"{scale} sd")
        ax.plot(*_mean(state, axes), "o", color=PATH, markersize=5, label="mean")
        _label(ax, view, axes, window)
        ax.legend(loc="upper left")

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        ax = figure.subplots()
        chosen = saves.choose(_NUM_SHOWN)
        states = [saves.state(index) for index in chosen]
        axes = view.axes_of(states[0].dim)
        window = _window(ax, states, axes)
        _reference(ax, view, axes, states[0].dim, window)
        colours = time_bar(figure, ax, saves, chosen)
        for place, (state, colour) in enumerate(zip(states, colours, strict=True)):
            ax.plot(*_ellipse(state, axes, 2), **_look(place, len(states), colour))
        means = np.asarray(saves.path.states.mean, np.float64)[:, axes]
        ax.plot(*means.T, color=PATH, linewidth=1.0)
        ax.plot(*means[-1], "o", color=PATH, markersize=5, label="mean")
        _label(ax, view, axes, window)
        ax.legend(loc="upper left")
        ax.set_title("Ellipses of two standard deviations")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        states = [saves.state(index) for index in chosen]
        axes = view.axes_of(states[0].dim)
        window = _window(ax, states, axes)
        _reference(ax, view, axes, states[0].dim, window)
        ax.plot(*_ellipse(states[0], axes, 2), color=START, linestyle=_DASHED, linewidth=1.3, label="start, 2 sd")
        (inner,) = ax.plot([], [], color=PATH, linewidth=1.2, label="now, 1 sd")
        (outer,) = ax.plot([], [], color=PATH, linewidth=2.0, label="now, 2 sd")
        (dot,) = ax.plot([], [], "o", color=PATH, markersize=5)
        _label(ax, view, axes, window)
        ax.legend(loc="upper left")

        def update(index: int) -> None:
            state = saves.state(index)
            inner.set_data(*_ellipse(state, axes, 1))
            outer.set_data(*_ellipse(state, axes, 2))
            dot.set_data(*_mean(state, axes)[:, None])

        return update


@picture_of.register
def _(state: Gaussian) -> AbstractPicture:
    return BellPicture() if state.dim == 1 else EllipsePicture()


def _look(place: int, count: int, colour: Any) -> dict[str, Any]:
    if place == 0 and count > 1:
        return {"color": START, "linestyle": _DASHED, "linewidth": 1.7, "label": "start"}
    if place == count - 1:
        return {"color": colour, "linewidth": 2.2, "label": "end"}
    return {"color": colour, "linewidth": 1.3}


def _range(states: list[Any]) -> np.ndarray:
    means = np.array([float(state.mean[0]) for state in states])
    sds = np.array([float(state.covariance[0, 0]) ** 0.5 for state in states])
    return np.linspace((means - 4 * sds).min(), (means + 4 * sds).max(), 401)


def _bell(state: Any, x: np.ndarray) -> np.ndarray:
    mean, variance = float(state.mean[0]), float(state.covariance[0, 0])
    return np.exp(-0.5 * (x - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)


def _mean(state: Any, axes: tuple[int, ...]) -> np.ndarray:
    return np.asarray(state.mean, np.float64)[list(axes)]


def _ellipse(state: Any, axes: tuple[int, ...], scale: int) -> np.ndarray:
    covariance = np.asarray(state.covariance, np.float64)[np.ix_(axes, axes)]
    return _mean(state, axes)[:, None] + scale * np.linalg.cholesky(covariance) @ _CIRCLE


def _window(ax: Any, states: list[Any], axes: tuple[int, ...]) -> tuple[tuple[float, float], tuple[float, float]]:
    """A window around the ellipses in the shape of the axes, so that a circle is a circle; a wide one has room for a
    legend at its side."""
    points = np.concatenate([_ellipse(state, axes, 2) for state in states], axis=1)
    lower, upper = points.min(axis=1), points.max(axis=1)
    centre, half = 0.5 * (lower + upper), 0.58 * (upper - lower)
    shape = ax.bbox.width / ax.bbox.height
    half = np.maximum(half, [half[1] * shape, half[0] / shape])
    low, high = centre - half, centre + half
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def _reference(ax: Any, view: View, axes: tuple[int, ...], dim: int, window: Any) -> None:
    if isinstance(view.reference, Gaussian):
        ax.plot(
            *_ellipse(view.reference, axes, 2),
            color=REFERENCE,
            linewidth=2.0,
            linestyle=DOTTED,
            zorder=3,
            label="reference",
        )
    elif dim == 2 and axes == (0, 1):
        if draw_reference_contours(ax, view.reference, window, deviations=(2,), dotted=True):
            ax.plot([], [], color=REFERENCE, linewidth=2.0, linestyle=DOTTED, label="reference")


def _label(ax: Any, view: View, axes: tuple[int, ...], window: Any) -> None:
    ax.set_aspect("equal")
    ax.set(xlim=window[0], ylim=window[1], xlabel=view.name(axes[0]), ylabel=view.name(axes[1]))
