"""One look for every figure: ink on white, blue for the path, orange-red for what it should reach.

The style is put on for the time of a drawing and taken off again; a user's own settings are never changed. Colours
were chosen to stay apart for colour-blind readers: the path varies in lightness only, and the reference differs from
it in hue, lightness and line style.
"""

import contextlib
import textwrap
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure

INK = "#1d2b3a"
MUTED = "#66758a"
GRID = "#e4e9ef"
START = "#7d93aa"
PATH = "#0f4c81"
FILL = "#bcd4e8"
REFERENCE = "#d1490c"
DOTTED = (0, (1, 1.6))
# Okabe and Ito (2008), without its yellow, which is faint on white.
CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7f7f7f")

STYLE: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 9.5,
    "text.color": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.use_mathtext": True,
    "axes.formatter.limits": (-4, 5),
    "axes.prop_cycle": cycler(color=CATEGORIES),
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "image.cmap": "viridis",
}


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """The style, for the time of a `with` block, over matplotlib's defaults; what was set before comes back after."""
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


# sRGB to linear light, then to the OKLab space, in which equal steps look equal.
# Source of the matrices: Ottosson, "A perceptual color space for image processing" (2020).
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def oklab(colours: Any) -> np.ndarray:
    """sRGB colours in [0, 1], shape `(..., 3)`, as OKLab: lightness first, then the two hue axes."""
    rgb = np.asarray(colours, float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T


def _srgb(lab: np.ndarray) -> np.ndarray:
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_CONES).T, 0, 1)
    return np.clip(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055), 0, 1)


def _even_lightness(anchors: tuple[str, ...], name: str) -> ListedColormap:
    """A colour map through the anchors, whose lightness falls by the same amount at every step."""
    lab = oklab([to_rgb(anchor) for anchor in anchors])
    lightness = np.linspace(lab[0, 0], lab[-1, 0], 256)
    hues = [np.interp(-lightness, -lab[:, 0], lab[:, axis]) for axis in (1, 2)]
    return ListedColormap(_srgb(np.stack([lightness, *hues], axis=-1)), name=name)


# White is nothing and dark is much: a density of zero looks like paper.
DENSITY_MAP = _even_lightness(("#ffffff", "#cfe3ee", "#86b9d3", "#3f86b4", "#18548a", "#0b2447"), "thalweg_density")
# The same hues without the palest, for lines on white.
TIME_MAP = _even_lightness(("#a9c9dd", "#6aa5c8", "#3f86b4", "#18548a", "#0b2447"), "thalweg_time")


def new_figure(width: int | float, height: int | float) -> Figure:
    """A figure for the user, with constrained layout.

    It is known to pyplot where a window could show it. In a notebook, or without a display, it is not: it would be
    shown twice, or stay in memory until somebody closes it.
    """
    from matplotlib.backends.registry import BackendFilter, backend_registry

    interactive = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    if matplotlib.get_backend().lower() in interactive:
        import matplotlib.pyplot as plt

        return plt.figure(figsize=(width, height), layout="constrained")
    return private_figure(width, height)


def private_figure(width: int | float, height: int | float) -> Figure:
    """A figure that pyplot does not know of, so that nothing needs to be closed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(text: Any) -> str:
    """A user's text for a figure: no mathematics is read into its dollar signs."""
    return str(text).replace("$", r"\$")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any, digits: int = 4, *, keep_zeros: bool = False) -> str:
    """A number for a person: so many digits, a true minus sign, and powers of ten written as such."""
    text = f"{float(value):{'#' if keep_zeros else ''}.{digits}g}".rstrip(".")
    mantissa, _, exponent = text.partition("e")
    mantissa = mantissa.replace("-", "−")
    return f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}" if exponent else mantissa


def footnote(figure: Any, text: str, width: float) -> None:
    """A small grey note below a figure that is `width` inches wide."""
    # About fifteen characters of 8-point text fit into an inch.
    wrapped = "\n".join(textwrap.wrap(plain(text), width=max(30, int(15 * width))))
    figure.supxlabel(wrapped, x=0.012, ha="left", fontsize=8, color=MUTED, linespacing=1.35)


# Matplotlib looks at every point to find a free corner; with more than this it takes too long.
_SEARCHED_POINTS = 4000


def legend(ax: Any, num_points: int, **options: Any) -> None:
    """A legend in the freest corner, or in the upper right one where there are too many points to look."""
    ax.legend(loc="best" if num_points <= _SEARCHED_POINTS else "upper right", **options)


def note_on(ax: Any, text: str) -> None:
    """A small grey note in the upper left corner of a panel."""
    ax.text(0.02, 0.97, plain(text), transform=ax.transAxes, va="top", fontsize=8, color=MUTED)
