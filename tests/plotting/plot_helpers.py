"""Small paths of every kind of state, some computed and some made by hand, and what to ask of a figure."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.text import Text

import thalweg as tw
from thalweg._path import FlowState, Path
from thalweg._saves import Saves


def half_square(x: Any) -> Any:
    return 0.5 * jnp.sum(x**2)


def bump(x: Any) -> Any:
    return jnp.exp(-2.0 * jnp.sum((x - 0.5) ** 2))


def straight_line(params: Any, inputs: Any) -> Any:
    return params[0] + params[1] * inputs


def made_path(
    energies: Any = None,
    rates: Any = None,
    times: Any = None,
    states: Any = None,
    distances: Any = None,
    dissipated: Any = None,
    stats: dict[str, Any] | None = None,
) -> Path:
    """A path with these records; times count from zero and the states are a vector that stays, unless given."""
    records = {
        "energies": energies,
        "dissipation_rates": rates,
        "distances_squared": distances,
        "dissipated": dissipated,
    }
    given = next(x for x in (states, times, *records.values()) if x is not None)
    num_saves = len(jax.tree.leaves(given)[0])
    times = jnp.arange(num_saves, dtype=float) if times is None else jnp.asarray(times, float)
    states = jnp.ones((num_saves, 3)) if states is None else states
    zero = jnp.zeros(())
    last = jax.tree.map(lambda leaf: leaf[-1] if eqx.is_array(leaf) else leaf, states)
    return Path(
        Saves(
            times,
            eqx.filter(states, eqx.is_array),
            {name: jnp.asarray(values) for name, values in records.items() if values is not None},
            {},
        ),
        tw.RESULTS.successful,
        FlowState(last, None, times[-1], zero, jnp.asarray(num_saves - 1), zero, zero, {}),
        stats_items=tuple((stats or {}).items()),
    )


def of_states(states: Any) -> Path:
    """A path of given states, whose energy falls."""
    fall = np.exp(-np.arange(_NUM_SAVES))
    return made_path(fall, rates=fall, distances=fall, states=states)


_NUM_SAVES = 9
_SHARES = np.linspace(0.0, 1.0, _NUM_SAVES)


def _stacked(make: Callable[[float], Any]) -> Any:
    states = [make(float(share)) for share in _SHARES]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _grid_states(lower: Any, upper: Any, shape: Any) -> Any:
    grid = tw.Grid(lower, upper, shape)
    return _stacked(lambda share: tw.GridDensity.from_function(lambda x: bump(x + share), grid))


def _vector(share: float) -> Any:
    return jnp.array([3.0, -1.0]) * (1 - share) ** 2 + share


def _tree(share: float) -> Any:
    return {"weights": share * jnp.arange(6.0).reshape(2, 3), "offset": jnp.asarray(4.0 - share)}


def _gaussian(dim: int, share: float) -> Any:
    return tw.Gaussian(jnp.full(dim, share), jnp.diag(0.3 + share * jnp.arange(1.0, dim + 1)))


def _diffused() -> Path:
    density = tw.GridDensity.from_function(bump, tw.Grid(-2.0, 2.0, 24))
    energy = tw.PotentialEnergy(half_square) + tw.Entropy()
    return tw.flow(energy, density, geometry=tw.Wasserstein(), scheme=tw.Explicit(0.01), num_steps=8)


def _sampled() -> Path:
    start = tw.Particles(jax.random.normal(jax.random.key(0), (40, 1)))
    energy = tw.KL(tw.Target(lambda x: -half_square(x - 1.0), 1))
    scheme = tw.Langevin(0.05)
    return tw.flow(energy, start, geometry=tw.Wasserstein(), scheme=scheme, num_steps=8, key=jax.random.key(1))


def _scattered(share: float) -> Any:
    return tw.Particles(share + (1 + share) * jax.random.normal(jax.random.key(2), (40, 3)))


def _fitted() -> Path:
    inputs = jnp.linspace(0.0, 4.0, 9)
    outputs = 2.0 + 0.5 * inputs
    family = tw.likelihoods.Regression(straight_line, inputs, tw.likelihoods.Normal())
    # Steps of a part of the way, so that there is something to see; `fit` is there in one.
    return tw.flow(
        tw.HalfDeviance(outputs),
        tw.Parametric(jnp.array([0.0, 0.0]), family),
        geometry=tw.FisherRao(),
        scheme=tw.Explicit(0.4),
        num_steps=5,
    )


# The first three are computed: their states hold what `flow` leaves in them, functions set aside and all.
MAKERS: dict[str, Callable[[], Path]] = {
    "line": _diffused,
    "particles on a line": _sampled,
    "fit": _fitted,
    "plane": lambda: of_states(_grid_states((-2.0, -1.5), (2.0, 1.5), (9, 8))),
    "space": lambda: of_states(_grid_states((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0), (5, 6, 7))),
    "particles in space": lambda: of_states(_stacked(_scattered)),
    "gaussian on a line": lambda: of_states(_stacked(lambda share: _gaussian(1, share))),
    "gaussian in space": lambda: of_states(_stacked(lambda share: _gaussian(3, share))),
    "two numbers": lambda: of_states(_stacked(_vector)),
    "tree": lambda: of_states(_stacked(_tree)),
}
_MADE: dict[str, Path] = {}


def path_of(kind: str) -> Path:
    """The small path of one kind."""
    if kind not in _MADE:
        _MADE[kind] = MAKERS[kind]()
    return _MADE[kind]


def drawn_panels(figure: Any) -> list[Any]:
    """The axes of a figure that can be seen, less colour bars."""
    return [ax for ax in figure.axes if ax.get_visible() and not hasattr(ax, "_colorbar")]


def texts_outside(figure: Any) -> list[str]:
    """The texts of a figure that its edge cuts."""
    figure.canvas.draw()
    frame = figure.bbox
    # Ticks beyond the limits are kept by matplotlib but not drawn.
    ticks = {
        label
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for label in (*axis.get_ticklabels(which="major"), *axis.get_ticklabels(which="minor"))
    }
    cut = []
    for text in figure.findobj(Text):
        if text in ticks or not text.get_visible() or not text.get_text().strip():
            continue
        if text.axes is not None and not text.axes.get_visible():
            continue
        box = text.get_window_extent()
        if box.x0 < frame.x0 - 1 or box.x1 > frame.x1 + 1 or box.y0 < frame.y0 - 1 or box.y1 > frame.y1 + 1:
            cut.append(text.get_text())
    return cut


def line_with(ax: Any, label: str) -> np.ndarray:
    """The points of the line of that label, shape `(num_points, 2)`."""
    (line,) = [line for line in ax.lines if line.get_label() == label]
    return np.asarray(line.get_xydata())
