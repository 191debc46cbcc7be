"""The states of a path in motion, over the curve of its energy."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.animation import FuncAnimation

from thalweg._path import Path
from thalweg.plotting._curves import draw_energy_strip
from thalweg.plotting._path import png_bytes
from thalweg.plotting._states import Saves, View, picture_of
from thalweg.plotting._style import new_figure, private_figure, styled

# Half the frames follow the time and half the change, so that neither a fast start nor a slow end is missed.
_TIME_SHARE = 0.5


def animate_path(
    path: Path,
    *,
    num_frames: int = 60,
    seconds: float = 6.0,
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
) -> FuncAnimation:
    """The states of a path as a matplotlib animation, with a dot that runs down its energy.

    Frames are saves of the path, chosen partly at even times and partly at even changes; each says its time.

    **Arguments:** `num_frames`: at most so many; `seconds`: how long one round lasts; the others as for
    [`thalweg.plotting.plot_path`][].

    **Returns:** a `FuncAnimation`: `.save("path.gif")` writes it, `.to_jshtml()` shows it in a notebook.

    **Raises:** `ValueError` if `num_frames` is not positive.
    """
    view = View(energy, reference_state, coordinates, coordinate_names)
    with styled():
        figure = new_figure(5.4, 5.0)
        update, chosen = _stage(figure, path, view, reference_energy, num_frames)
    return FuncAnimation(figure, update, frames=chosen, interval=1000 * seconds / len(chosen), blit=False)


def frames_png(
    path: Path,
    num_frames: int = 24,
    *,
    energy: Any = None,
    reference_state: Any = None,
    reference_energy: float | None = None,
    coordinates: tuple[int, int] = (0, 1),
    coordinate_names: Sequence[str] | None = None,
    dpi: int = 130,
) -> list[bytes]:
    """The frames of the animation as PNG files in memory, all of one size; the last one is the end of the path.

    **Arguments:** as for [`thalweg.plotting.animate_path`][]; `dpi`: dots per inch of frames that are 5.4 inches wide.

    **Returns:** at most `num_frames` PNG files, in the order of time.
    """
    view = View(energy, reference_state, coordinates, coordinate_names)
    return render_frames(path, view, reference_energy, num_frames, dpi)[1]


def render_frames(
    path: Path, view: View, reference_energy: float | None, num_frames: int, dpi: int
) -> tuple[list[int], list[bytes]]:
    """Which saves are shown, and their frames as PNG files."""
    with styled():
        figure = private_figure(5.4, 4.6)
        update, chosen = _stage(figure, path, view, reference_energy, num_frames)
        frames = []
        for index in chosen:
            update(index)
            frames.append(png_bytes(figure, dpi))
    return chosen, frames


def _stage(
    figure: Any, path: Path, view: View, reference_energy: float | None, num_frames: int
) -> tuple[Callable[[int], None], list[int]]:
    if num_frames < 1:
        raise ValueError(f"`num_frames` must be positive; got {num_frames}.")
    saves = Saves(path)
    chosen = saves.choose(max(num_frames, 2), time_share=_TIME_SHARE)[-num_frames:]
    above, below = figure.subplots(2, 1, height_ratios=(3.4, 1))
    update_state = picture_of(path.final.state).animate(above, saves, view, chosen)
    update_energy = draw_energy_strip(below, path, reference_energy)

    def update(index: int) -> None:
        update_state(index)
        update_energy(index)
        above.set_title(saves.stamp(index))

    # Laid out once, on the last frame, and then held: nothing may jump from frame to frame.
    update(chosen[-1])
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return update, chosen
