"""A whole path in one figure: its energy, its dissipation and its states; and several paths beside each other."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from thalweg._path import Path
from thalweg.plotting._curves import draw_dissipation, draw_distances, draw_energy, time_label, times_of
from thalweg.plotting._states import Saves, View, picture_of
from thalweg.plotting._style import CATEGORIES, DOTTED, REFERENCE, footnote, new_figure, plain, private_figure, styled
from thalweg.plotting._words import reasons

_LINE_STYLES = ("-", "--", "-.", ":")


def plot_path(
    path: Path,
    *,
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Any:
    """Draw a path: its energy and dissipation rate against time, and its states.

    Where Newton's steps have no limit (`tw.minimise`, `tw.fit`) there is no time: curves run over the steps, and the
    squared norm of the gradient stands in place of the dissipation rate.

    **Arguments:** `path`: of one flow; `energy`: F, for contour lines under a vector of two entries and the data of a
    fit (`tw.HalfDeviance(outputs)`, which a path does not hold; drawn for one real input and normal noise);
    `reference_state`: what should be reached: a state, a density as a function of one point of shape `(dim,)`, its
    values on the grid, or the minimiser; `reference_energy`: its energy; `coordinates`: which two of many are shown,
    counted from zero; `coordinate_names`: one for each coordinate; `title`.

    What could not be measured is named below the figure.

    **Returns:** a matplotlib figure.
    """
    view = View(energy, reference_state, coordinates, coordinate_names)
    with styled():
        figure = new_figure(9.6, 6.8)
        fill_figure(figure, path, view, reference_energy, title)
    return figure


def fill_figure(figure: Any, path: Path, view: View, reference_energy: float | None, title: str | None) -> None:
    """The overview of a path, in a figure of at least eight by six inches."""
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15), hspace=0.04)
    if "dissipation_rates" in path.records:
        left, right = top.subplots(1, 2)
        draw_energy(left, path, reference_energy)
        draw_dissipation(right, path)
    else:
        draw_energy(top.subplots(), path, reference_energy)
    saves = Saves(path)
    picture_of(path.final.state).draw_path(bottom, saves, view)
    if title is not None:
        figure.suptitle(plain(title), x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    if path.unavailable:
        note = " ".join(f"Not available: {names} ({reason})." for reason, names in reasons(path).items())
        footnote(figure, note, figure.get_figwidth())


def compare_paths(
    paths: Mapping[str, Path],
    *,
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
) -> Any:
    """Draw several paths beside each other: their energies on the same axes, and the states of each.

    **Arguments:** `paths`: by name; the others as for [`thalweg.plotting.plot_path`][].

    **Returns:** a matplotlib figure.

    **Raises:** `ValueError` if there are no paths, or if energies of different kinds would share an axis.
    """
    if not paths:
        raise ValueError("`paths` must hold at least one path; it is empty.")
    _check_comparable(paths)
    view = View(energy, reference_state, coordinates, coordinate_names)
    with styled():
        figure: Any = new_figure(max(9.6, 4.6 * len(paths)), 6.8)
        top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15), hspace=0.04)
        _draw_energies(top.subplots(), paths, reference_energy)
        parts: Any = bottom.subfigures(1, len(paths), squeeze=False)
        for part, (name, path) in zip(parts[0], paths.items(), strict=True):
            picture_of(path.final.state).draw_path(part, Saves(path), view)
            part.suptitle(plain(name), fontweight="bold")
    return figure


def _check_comparable(paths: Mapping[str, Path]) -> None:
    kinds = {name: ("energies" in path.records, time_label(path)) for name, path in paths.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(
            f"{name}: {'energy' if has else 'energy without its entropy'} against {label}"
            for name, (has, label) in kinds.items()
        )
        raise ValueError(f"These paths cannot share an energy axis ({listed}).\nDraw each with `path.plot()`.")


def _draw_energies(ax: Any, paths: Mapping[str, Path], reference_energy: float | None) -> None:
    curves = {}
    for name, path in paths.items():
        has_energy = "energies" in path.records
        curves[name] = np.asarray(path.energies if has_energy else path.measurements["regular_energy"], np.float64)
    lowest = min(float(values.min()) for values in curves.values())
    base = lowest if reference_energy is None else reference_energy
    excess = {name: values - base for name, values in curves.items()}
    smallest = min((float(e[e > 0].min()) for e in excess.values() if np.any(e > 0)), default=1.0)
    largest = max(float(e.max()) for e in excess.values())
    is_log = lowest >= base and largest > 50 * smallest and all("energies" in p.records for p in paths.values())
    for place, (name, path) in enumerate(paths.items()):
        values = np.where(excess[name] > 0, excess[name], np.nan) if is_log else curves[name]
        style = _LINE_STYLES[place % len(_LINE_STYLES)]
        ax.plot(times_of(path), values, color=CATEGORIES[place % len(CATEGORIES)], linestyle=style, label=plain(name))
    if is_log:
        ax.set_yscale("log")
    elif reference_energy is not None:
        ax.axhline(reference_energy, color=REFERENCE, linestyle=DOTTED, label="reference")
    above = "the reference" if reference_energy is not None else "the lowest of all"
    first = next(iter(paths.values()))
    linear = "energy $F$" if "energies" in first.records else "regular energy"
    ax.set(xlabel=time_label(first), ylabel=f"energy above {above}" if is_log else linear)
    ax.set_title("Energy" if "energies" in first.records else "Energy without its entropy")
    ax.legend(loc="best")


class Pictures:
    """The separate figures of a path, as PNG bytes by name.

    `overview` is everything; `energy`, `dissipation`, `distances` and `states` are its parts, at sizes that a page or a
    telephone can show.
    """

    def __init__(self, path: Path, view: View, reference_energy: float | None, title: str | None = None):
        self.path, self.view = path, view
        self.reference_energy, self.title = reference_energy, title

    def names(self) -> list[str]:
        """The figures that this path can have."""
        possible = ["overview", "energy"]
        possible += ["dissipation"] if "dissipation_rates" in self.path.records else []
        possible += ["distances"] if "distances_squared" in self.path.records and len(self.path) > 1 else []
        return [*possible, "states"]

    def png(self, name: str, dpi: int = 200) -> bytes:
        """One figure as the bytes of a PNG file."""
        with styled():
            if name == "overview":
                figure = private_figure(9.6, 6.8)
                fill_figure(figure, self.path, self.view, self.reference_energy, self.title)
            elif name == "states":
                figure = private_figure(7.2, 4.6)
                picture_of(self.path.final.state).draw_path(figure, Saves(self.path), self.view)
            else:
                figure = private_figure(4.8, 3.3)
                ax = figure.subplots()
                if name == "energy":
                    draw_energy(ax, self.path, self.reference_energy)
                elif name == "dissipation":
                    draw_dissipation(ax, self.path)
                else:
                    draw_distances(ax, self.path)
            return png_bytes(figure, dpi)


def png_bytes(figure: Any, dpi: int) -> bytes:
    """A figure as the bytes of a PNG file with at most 256 colours: a third of the size, with no difference to see."""
    # Drawn once into memory: `savefig` would draw a figure with a layout twice.
    figure.set_dpi(dpi)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
