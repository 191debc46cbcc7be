"""Pictures of members of a parametric family: parameters against time, and a fit with its data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.likelihoods import Normal, Regression
from thalweg.plotting._states import AbstractPicture, Saves, View, is_wide, picture_of
from thalweg.plotting._style import INK, PATH, START
from thalweg.plotting._vectors import (
    animate_components,
    components,
    draw_components,
    reference_point,
)
from thalweg.states import Parametric

_CURVE_POINTS = 241


class ParametricPicture(AbstractPicture):
    """Parameters; and where the family is a regression on the line, its curve through the data."""

    def draw(self, ax: Any, state: Any, view: View) -> None:
        if _is_curve(state):
            _draw_data(ax, state, view)
            ax.plot(*_curve(state), color=PATH, label="model")
            ax.legend(loc="best")
            return
        values, names = components(state.params, view, symbol=r"\theta")
        ax.bar(range(values.shape[1]), values[0], color=PATH)
        ax.set_xticks(range(values.shape[1]), names, rotation=90 if values.shape[1] > 8 else 0)
        ax.set(xlabel="parameter", ylabel="value")

    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        parts = components(saves.path.states.params, view, symbol=r"\theta", has_saves=True)
        reference = reference_point(view, parts.values.shape[1])
        if not _is_curve(saves.state(0)):
            draw_components(figure.subplots(), saves, parts, reference)
            return
        left, *others = figure.subplots(1, 2, width_ratios=(1.15, 1)) if is_wide(figure) else [figure.subplots()]
        first, last = saves.state(0), saves.state(len(saves) - 1)
        data = _draw_data(left, first, view)
        (start,) = left.plot(*_curve(first), color=START, linestyle="--", linewidth=1.5, label="start")
        left.plot(*_curve(last), color=PATH, linewidth=2.2, label="end")
        if data is not None:
            _keep_to_data(left, data, [_curve(last)[1]], start)
        left.legend(loc="best")
        left.set_title("Model")
        for right in others:
            draw_components(right, saves, parts, reference)
            right.set_title("Parameters")

    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        if not _is_curve(saves.state(0)):
            parts = components(saves.path.states.params, view, symbol=r"\theta", has_saves=True)
            return animate_components(ax, saves, parts, reference_point(view, parts.values.shape[1]))
        data = _draw_data(ax, saves.state(0), view)
        (start,) = ax.plot(*_curve(saves.state(0)), color=START, linestyle="--", linewidth=1.3, label="start")
        (line,) = ax.plot(*_curve(saves.state(0)), color=PATH, linewidth=2.0, label="now")
        curves = {index: _curve(saves.state(index))[1] for index in chosen}
        if data is None:
            ax.set_ylim(*_padded(np.concatenate(list(curves.values()))))
        else:
            _keep_to_data(ax, data, [curves[chosen[-1]]], start)
        ax.legend(loc="best")

        def update(index: int) -> None:
            line.set_ydata(_curve(saves.state(index))[1])

        return update


@picture_of.register
def _(state: Parametric) -> AbstractPicture:
    return ParametricPicture()


def _is_curve(state: Any) -> bool:
    """Whether the state is a regression with one real predictor and normal noise, so that its model is a curve."""
    family = state.family
    if not (isinstance(family, Regression) and isinstance(family.likelihood, Normal)):
        return False
    shape = getattr(family.inputs, "shape", None)
    if shape is None or len(shape) != 1 or shape[0] < 2:
        return False
    try:
        out = jax.eval_shape(family.model, state.params, jax.ShapeDtypeStruct((_CURVE_POINTS,), family.inputs.dtype))
    except (TypeError, ValueError):  # a model of exactly these inputs
        return False
    return getattr(out, "shape", None) == (_CURVE_POINTS,)


def _curve(state: Any) -> tuple[np.ndarray, np.ndarray]:
    inputs = np.asarray(state.family.inputs)
    dense = np.linspace(inputs.min(), inputs.max(), _CURVE_POINTS)
    return dense, np.asarray(state.family.model(state.params, jnp.asarray(dense, inputs.dtype)), np.float64)


def _draw_data(ax: Any, state: Any, view: View) -> np.ndarray | None:
    ax.set(xlabel="input", ylabel="output")
    outputs = getattr(view.energy, "outputs", None)
    inputs = np.asarray(state.family.inputs)
    if outputs is None or np.shape(outputs) != inputs.shape:
        return None
    ax.plot(inputs, np.asarray(outputs), "o", color=INK, alpha=0.55, markersize=3.5, linestyle="none", label="data")
    return np.asarray(outputs, np.float64)


def _keep_to_data(ax: Any, data: np.ndarray, curves: list[np.ndarray], start: Any) -> None:
    """Limits that hold the data and the fit; a start far away leaves the frame, and its label says so."""
    low, high = _padded(np.concatenate([data, *curves]))
    y = np.asarray(start.get_ydata())
    reach = (min(low, float(y.min())), max(high, float(y.max())))
    if reach[1] - reach[0] > 3 * (high - low):
        ax.set_ylim(low, high)
        outside = "start (outside)" if np.all((y < low) | (y > high)) else "start (partly outside)"
        start.set_label(outside)
    else:
        ax.set_ylim(*_padded(np.concatenate([data, y, *curves])))


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin
