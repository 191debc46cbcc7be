"""The curves of a path against time, or against its steps: its energy, its dissipation rate, the length of its steps.

Labels say what is drawn. A logarithmic axis shows the energy above something, and the label names that something; what
a representation cannot measure is not drawn, and the figure says so.
"""

from typing import Any, NamedTuple

import numpy as np

from thalweg._path import Path
from thalweg.plotting._style import DOTTED, FILL, MUTED, PATH, REFERENCE, legend, note_on, number

# With fewer points than this each one is marked.
_FEW_POINTS = 40
# A quantity that varies by more than this factor is drawn on a logarithmic axis.
_WIDE_RANGE = 50.0
_VERY_WIDE_RANGE = 1e5


_NOTE: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 8, "color": MUTED}


class EnergyCurve(NamedTuple):
    """What the energy panel draws: `values` (NaN where there is nothing to draw), their label, a title, the axis."""

    values: np.ndarray
    label: str
    title: str
    is_logarithmic: bool


def is_timed(path: Path) -> bool:
    """Whether the times of the path measure how far the flow has come, in time or arc length.

    Those of `LinearlyImplicit` without a largest step size do not: near a minimum its steps go on to infinity. Nor do
    those of `ProximalNewton`, which are lengths, but of Newton's steps: all the last ones fall on one point.
    """
    return "times" not in path.stats and not {"parameter", "curvature"} <= set(path.stats)


def time_label(path: Path) -> str:
    """What the curves of the path are drawn against."""
    if not is_timed(path):
        return "step" if len(path) == int(path.final.num_steps) + 1 else "save"
    return "arc length" if "parameter" in path.stats else "time"


def times_of(path: Path) -> np.ndarray:
    """Where the saves stand on the axis of `time_label`, shape `(num_saves,)`: their times, or their numbers."""
    return np.asarray(path.times, np.float64) if is_timed(path) else np.arange(float(len(path)))


def energy_curve(path: Path, reference_energy: float | None = None) -> EnergyCurve | None:
    r"""The energy as it is best seen: on a logarithmic axis above the reference or the lowest value, or as it is.

    Without any recorded energy the result is `None`. Where only the part without the entropy has a value, that part is
    drawn and named so.
    """
    if "energies" not in path.records:
        if "regular_energy" not in path.measurements:
            return None
        values = np.asarray(path.measurements["regular_energy"], np.float64)
        return EnergyCurve(values, "regular energy", f"Energy without its entropy: {_from_to(values)}", False)
    values = np.asarray(path.energies, np.float64)
    title = f"Energy: {_from_to(values)}"
    rounding = rounding_of(path)
    lowest = float(values.min())
    above_reference = reference_energy is not None and lowest > reference_energy - rounding
    base = float(reference_energy) if reference_energy is not None and above_reference else lowest
    excess = np.where(values - base > rounding, values - base, np.nan)
    shown = excess[np.isfinite(excess)]
    # Above its own last value a curve dives at the end, which shows nothing, unless it has come to rest by then.
    wide = _WIDE_RANGE if above_reference or _num_settled(excess) > 1 else _VERY_WIDE_RANGE
    if len(shown) < 3 or shown.max() < wide * shown.min():
        return EnergyCurve(values, "energy $F$", title, False)
    label = r"$F - F_\mathrm{ref}$  (above the reference)" if above_reference else "$F - \\min F$  (above the lowest)"
    return EnergyCurve(excess, label, title, True)


def draw_energy(ax: Any, path: Path, reference_energy: float | None = None) -> None:
    """The energy against time."""
    curve = energy_curve(path, reference_energy)
    if curve is None:
        note_on(ax, "no energy was recorded")
        ax.set(xlabel=time_label(path), ylabel="energy")
        return
    _line(ax, times_of(path), curve.values)
    if curve.is_logarithmic:
        ax.set_yscale("log")
    elif reference_energy is not None and "energies" in path.records:
        ax.axhline(reference_energy, color=REFERENCE, linestyle=DOTTED, label="reference")
        legend(ax, len(path))
    ax.set(xlabel=time_label(path), ylabel=curve.label)
    ax.set_title(curve.title)
    _hold_times(ax, path)
    settled = _num_settled(curve.values)
    if settled > 1:
        since = f"{'' if is_timed(path) else time_label(path) + ' '}{number(times_of(path)[-settled], 3)}"
        ax.text(0.98, 0.9, f"to rounding at its lowest from {since} on", transform=ax.transAxes, **_NOTE)


def draw_dissipation(ax: Any, path: Path) -> None:
    r"""The dissipation rate, and the energy lost per time between two saves, which it should equal; the squared norm
    of the gradient alone where there is no time.
    """
    if not is_timed(path):
        _draw_gradient_norm(ax, path)
        return
    times, rates = times_of(path), np.asarray(path.dissipation_rates, np.float64)
    along_arc = "parameter" in path.stats
    # Along arc length s the energy falls at dF/ds = −‖ξ‖_*, the root of the rate in time.
    rates = np.sqrt(rates) if along_arc else rates
    name = r"$\|\xi\|_*$" if along_arc else r"$\|\xi\|_*^2$"
    if "energies" in path.records and len(times) > 1:
        gaps = np.diff(times)
        lost = -np.diff(np.asarray(path.energies, np.float64)) / np.where(gaps > 0, gaps, np.nan)
        lost = np.where(lost * gaps > rounding_of(path), lost, np.nan)
        label = f"$-\\Delta F/\\Delta {'s' if along_arc else 't'}$ between saves"
        ax.stairs(lost, times, baseline=None, color=REFERENCE, linewidth=1.2, label=label)
    _line(ax, times, np.where(rates > 0, rates, np.nan), label=name)
    positive = rates[rates > 0]
    if len(positive) > 2 and positive.max() > _WIDE_RANGE * positive.min():
        ax.set_yscale("log")
        ax.set_ylim(bottom=positive.min() / 3)
    _hold_times(ax, path)
    unit = "energy per arc length" if along_arc else "energy per time"
    ax.set(xlabel=time_label(path), ylabel=f"{name}, {unit}")
    ax.set_title("Slope" if along_arc else "Dissipation rate")
    legend(ax, len(times))


def _draw_gradient_norm(ax: Any, path: Path) -> None:
    rates = np.asarray(path.dissipation_rates, np.float64)
    positive = np.any(rates > 0)
    _line(ax, times_of(path), np.where(rates > 0, rates, np.nan) if positive else rates)
    if positive:
        ax.set_yscale("log")
    _hold_times(ax, path)
    ax.set(xlabel=time_label(path), ylabel=r"$\|\xi\|_*^2$")
    ax.set_title("Squared norm of the gradient")


def draw_distances(ax: Any, path: Path) -> None:
    """The length of the step that led to each save."""
    times, lengths = times_of(path)[1:], np.sqrt(np.asarray(path.distances_squared, np.float64)[1:])
    positive = lengths[lengths > 0]
    _line(ax, times, np.where(lengths > 0, lengths, np.nan) if len(positive) else lengths)
    if len(positive) > 2 and positive.max() > _WIDE_RANGE * positive.min():
        ax.set_yscale("log")
    ax.set(xlabel=time_label(path), ylabel=r"$\sqrt{D}$, length of the last step")
    ax.set_title("Step length")


def draw_energy_strip(ax: Any, path: Path, reference_energy: float | None = None) -> Any:
    """A slim energy curve for below an animation; returns a function of the index of a save that moves its dot."""
    curve = energy_curve(path, reference_energy)
    times = times_of(path)
    values = np.full(times.shape, np.nan) if curve is None else curve.values
    ax.plot(times, values, color=FILL, linewidth=1.4)
    (passed,) = ax.plot([], [], color=PATH, linewidth=1.7)
    (dot,) = ax.plot([], [], "o", color=PATH, markersize=5, clip_on=False, zorder=4)
    now = ax.axvline(times[0], color=FILL, linewidth=1.0, zorder=0)
    _hold_times(ax, path)
    if curve is not None and curve.is_logarithmic:
        ax.set_yscale("log")
    short = "energy" if curve is None else curve.label.split("  ")[0].replace(" energy", "\nenergy")
    ax.set(xlabel=time_label(path), ylabel=short)

    def update(index: int) -> None:
        passed.set_data(times[: index + 1], values[: index + 1])
        dot.set_data(times[index : index + 1], values[index : index + 1])
        now.set_xdata([times[index]] * 2)

    return update


def rounding_of(path: Path) -> float:
    """Differences of the recorded energies below this are rounding, not physics."""
    energies = np.asarray(path.energies)
    return 8 * float(np.finfo(energies.dtype).eps) * float(np.max(np.abs(energies)))


def _num_settled(values: np.ndarray) -> int:
    """How many values at the end are not there."""
    return int(np.isnan(values[::-1]).argmin())


def _hold_times(ax: Any, path: Path) -> None:
    """The whole time of the path, also where nothing can be drawn."""
    times = times_of(path)
    margin = 0.03 * float(times[-1] - times[0]) or 0.5
    ax.set_xlim(times[0] - margin, times[-1] + margin)


def _line(ax: Any, times: np.ndarray, values: np.ndarray, label: str | None = None) -> None:
    marker = "o" if len(times) <= _FEW_POINTS else None
    ax.plot(times, values, color=PATH, marker=marker, markersize=3, label=label)


def _from_to(values: np.ndarray) -> str:
    return f"{number(values[0], 5)} → {number(values[-1], 5)}"
