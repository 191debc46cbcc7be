"""How a state looks: one picture for each kind of state, found by the class of the state.

A picture knows three things: one state on a pair of axes, the states of a whole path in a figure, and the same states
in motion. A new kind of state registers its picture on [`picture_of`][]; nothing else changes.
"""

import abc
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._path import Path
from thalweg.plotting._curves import time_label, times_of
from thalweg.plotting._style import DOTTED, INK, REFERENCE, TIME_MAP, new_figure, number, plain, styled
from thalweg.states import GridDensity, moving
from thalweg.targets import Target

# Saves that are compared when some are chosen: enough to follow a path, few enough to be quick.
_CANDIDATES = 400


class View(NamedTuple):
    """What a picture may use besides the states.

    `energy`: F, for contour lines under a vector and for the data of a fit; `reference`: what should be reached, a
    state, or the density as a function of one point; `coordinates`: which two are shown of many; `names`: of the
    coordinates.
    """

    energy: Any = None
    reference: Any = None
    coordinates: tuple[int, int] = (0, 1)
    names: Sequence[str] | None = None

    def name(self, coordinate: int) -> str:
        """The label of a coordinate."""
        return f"$x_{{{coordinate + 1}}}$" if self.names is None else plain(self.names[coordinate])

    def axes_of(self, dim: int) -> tuple[int, ...]:
        """The coordinates that are shown of a space of `dim` dimensions: one or two."""
        if self.names is not None and len(self.names) != dim:
            raise ValueError(f"`coordinate_names` must name all {dim} coordinates; got {len(self.names)} names.")
        if dim == 1:
            return (0,)
        first, second = self.coordinates
        if first == second or not all(0 <= c < dim for c in (first, second)):
            raise ValueError(f"`coordinates` must be two different ones of 0…{dim - 1}; got {(first, second)}.")
        return first, second


class Saves:
    """The states of a path, one at a time, and a choice of some that show how it went."""

    def __init__(self, path: Path):
        self.path = path
        self.times = times_of(path)
        self.time_label = time_label(path)
        # Fetched from the device once; what is not a number (a model, a key) does not move.
        moved = moving(path.states)
        self._saved = jax.tree.map(np.asarray, moved)

    def __len__(self) -> int:
        return len(self.times)

    def state(self, index: int) -> Any:
        """The state at one save, whole: what does not move is taken from the last state."""
        return eqx.combine(jax.tree.map(lambda leaf: leaf[index], self._saved), self.path.final.state)

    def stamp(self, index: int) -> str:
        """The time of one save, in words."""
        name = {"time": "$t$ =", "arc length": "$s$ =", "step": "step", "save": "save"}[self.time_label]
        return f"{name} {number(self.times[index], 3)}"

    def choose(self, num: int, *, time_share: float = 0.0) -> list[int]:
        """At most `num` saves between which the state changes by equal amounts; the first and the last are among them.

        Most flows change much at first and little later, so saves at equal times would show the end only.
        `time_share`, from 0 to 1, mixes equal times in.
        """
        candidates = np.unique(np.linspace(0, len(self) - 1, min(len(self), _CANDIDATES)).round().astype(int))
        if len(candidates) <= num:
            return [int(index) for index in candidates]
        progress = np.zeros(len(candidates))
        for values in jax.tree.leaves(self._saved):
            pairs = zip(candidates[:-1], candidates[1:], strict=True)
            change = np.cumsum([0.0, *(np.abs(values[b] - values[a]).sum(dtype=float) for a, b in pairs)])
            progress += change / change[-1] if change[-1] > 0 else 0.0
        times = self.times[candidates] - self.times[0]
        even = times / times[-1] if times[-1] > 0 else np.linspace(0, 1, len(candidates))
        progress = progress / progress[-1] if progress[-1] > 0 else even
        progress = (1 - time_share) * progress + time_share * even
        goals = np.linspace(0, 1, num)[1:-1]
        picked = {0, len(candidates) - 1, *(int(np.abs(progress - goal).argmin()) for goal in goals)}
        while len(picked) < num:
            # One save can be a large part of all change; what it leaves over goes to the widest gap that holds more.
            pairs = itertools.pairwise(sorted(picked))
            left, right = max(
                ((a, b) for a, b in pairs if b - a > 1), key=lambda gap: progress[gap[1]] - progress[gap[0]]
            )
            goal = 0.5 * (progress[left] + progress[right])
            picked.add(left + 1 + int(np.abs(progress[left + 1 : right] - goal).argmin()))
        return [int(candidates[i]) for i in sorted(picked)]


class AbstractPicture(abc.ABC):
    """How one kind of state looks."""

    @abc.abstractmethod
    def draw(self, ax: Any, state: Any, view: View) -> None:
        """One state on a pair of axes."""

    @abc.abstractmethod
    def draw_path(self, figure: Any, saves: Saves, view: View) -> None:
        """The states of a path in a figure or a part of one."""

    @abc.abstractmethod
    def animate(self, ax: Any, saves: Saves, view: View, chosen: list[int]) -> Callable[[int], None]:
        """Draw what stays, with limits that hold for all chosen saves; return what shows the save of a given index."""


@functools.singledispatch
def picture_of(state: Any) -> AbstractPicture:
    """The picture of a state; vectors and pytrees are the default."""
    from thalweg.plotting._vectors import VectorPicture

    return VectorPicture()


def plot_state(
    state: Any,
    ax: Any = None,
    *,
    energy: Any = None,
    reference_state: Any = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
) -> Any:
    """Draw one state.

    **Arguments:** `state`: of any kind; `ax`: matplotlib axes (`None`: a new figure); `energy`: F, drawn as contour
    lines under a vector of two entries, and as data under a fit; `reference_state`: what should be reached, a state
    or a density as a function of one point of shape `(dim,)`; `coordinates`: which two are shown, counted from zero;
    `coordinate_names`: one for each coordinate.

    **Returns:** the axes; `ax.figure` is the figure.

    **Raises:** `ValueError` if `coordinates` are not two coordinates of the state.
    """
    view = View(energy, reference_state, coordinates, coordinate_names)
    with styled():
        ax = new_figure(5.2, 3.8).add_subplot() if ax is None else ax
        picture_of(state).draw(ax, state, view)
    return ax


def is_wide(figure: Any) -> bool:
    """Whether a figure, or a part of one, has room for two panels beside each other."""
    return bool(figure.bbox.width > 1.45 * figure.bbox.height)


def density_values(reference: Any, points: np.ndarray) -> np.ndarray | None:
    """A reference as a density at points of shape `(num_points, dim)`; `None` if it is not a density of such points.

    A `tw.Target` is known up to a factor only; it is scaled so that its largest value here is one.
    """
    if reference is None or isinstance(reference, GridDensity) or eqx.is_array_like(reference):
        return None
    dtype = jnp.zeros(()).dtype
    log_density = getattr(reference, "log_density", None)
    if callable(log_density):
        logs = np.asarray(jax.jit(jax.vmap(log_density))(jnp.asarray(points, dtype)), np.float64)
        return np.exp(logs - logs.max()) if isinstance(reference, Target) else np.exp(logs)
    if callable(reference):
        return np.asarray(jax.jit(jax.vmap(reference))(jnp.asarray(points, dtype)), np.float64)
    return None


def reference_curve(reference: Any, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """A reference density on the line as abscissae and ordinates, on the given positions unless it has its own."""
    if isinstance(reference, GridDensity):
        return np.asarray(reference.grid.axis_centres(0)), np.asarray(reference.values)
    if eqx.is_array(reference) or isinstance(reference, np.ndarray):
        values = np.asarray(reference)
        return (positions, values) if values.shape == positions.shape else None
    values = density_values(reference, positions[:, None])
    if values is None:
        return None
    if isinstance(reference, Target):
        values = values / np.trapezoid(values, positions)
    return positions, values


def draw_reference_contours(
    ax: Any,
    reference: Any,
    window: tuple[tuple[float, float], tuple[float, float]],
    deviations: tuple[int, ...] = (3, 2, 1),
    dotted: bool = False,
) -> bool:
    """Contour lines of a reference density in the plane, where a Gaussian has so many standard deviations."""
    if isinstance(reference, GridDensity) and reference.dim == 2:
        x, y = (np.asarray(reference.grid.axis_centres(axis)) for axis in (0, 1))
        values = np.asarray(reference.values)
    else:
        x, y = (np.linspace(*side, 121) for side in window)
        points = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
        found = density_values(reference, points)
        if found is None:
            return False
        values = found.reshape(len(x), len(y))
    peak = float(values.max())
    levels = [level for k in deviations if values.min() < (level := peak * np.exp(-0.5 * k * k)) < peak]
    if not levels:
        return False
    ax.contour(
        x,
        y,
        values.T,
        levels=levels,
        colors=REFERENCE,
        linewidths=2.0 if dotted else 0.9,
        zorder=3,
        linestyles=[DOTTED if dotted else "solid"],
    )
    return True


def time_bar(figure: Any, axes: Any, saves: Saves, chosen: list[int]) -> list[Any]:
    """One colour for each chosen save, palest first, with a bar that names their times; returns the colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    colours = [TIME_MAP(x) for x in np.linspace(0, 1, max(len(chosen), 2))][: len(chosen)]
    if len(chosen) > 1:
        steps = TIME_MAP.resampled(len(chosen))
        norm = BoundaryNorm(np.arange(len(chosen) + 1) - 0.5, len(chosen))
        bar = figure.colorbar(ScalarMappable(norm, steps), ax=axes, ticks=range(len(chosen)), fraction=0.05, pad=0.02)
        bar.ax.set_yticklabels([number(saves.times[index], 3) for index in chosen])
        bar.ax.tick_params(length=0)
        bar.ax.minorticks_off()
        bar.outline.set_visible(False)
        bar.set_label(saves.time_label, color=INK)
    return colours
