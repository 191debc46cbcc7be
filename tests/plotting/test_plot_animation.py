"""The animation shows the states of the path, at one size, and ends at the end."""

import io
import itertools
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from plot_helpers import MAKERS, made_path, path_of

from thalweg.plotting import animate_path, frames_png
from thalweg.plotting._states import Saves, View, picture_of
from thalweg.plotting._style import private_figure


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"), float)


@pytest.mark.parametrize("kind", MAKERS)
def test_frames_have_one_size_and_differ(kind: str):
    frames = [pixels(png) for png in frames_png(path_of(kind), 3, dpi=60)]
    assert len(frames) == min(3, len(path_of(kind)))
    assert len({frame.shape for frame in frames}) == 1
    # Below the title, which holds the time, and above the energy. Each frame has its own 256 colours, which moves every
    # shade a little.
    states = [frame[len(frame) // 8 : len(frame) // 2] for frame in frames]
    assert all(np.max(np.abs(one - other)) > 30 for one, other in itertools.pairwise(states))


def test_the_last_frame_is_the_end_of_the_path():
    path = path_of("line")
    only = frames_png(path, 1, dpi=60)
    assert len(only) == 1
    shown = {}
    saves = Saves(path)
    ax = private_figure(3, 3).subplots()
    update = picture_of(path.final.state).animate(ax, saves, View(), saves.choose(3))
    for index in (0, len(path) - 1):
        update(index)
        (line,) = [line for line in ax.lines if line.get_label() == "now"]
        shown[index] = np.asarray(line.get_ydata())
    np.testing.assert_array_equal(shown[len(path) - 1], path.final.state.values)
    np.testing.assert_array_equal(shown[0], path.states.values[0])


def shown_numbers(kind: str, index: int) -> Any:
    """What the moving part of the picture holds at one save."""
    path = path_of(kind)
    saves = Saves(path)
    ax = private_figure(4, 4).subplots()
    update = picture_of(path.final.state).animate(ax, saves, View(), saves.choose(4))
    update(index)
    return ax


def test_heat_maps_clouds_and_dots_move_with_the_path():
    plane, cloud, dot = path_of("plane"), path_of("particles in space"), path_of("two numbers")
    image = shown_numbers("plane", 3).images[0].get_array()
    np.testing.assert_array_equal(image, np.asarray(plane.states.values[3]).T)
    offsets = shown_numbers("particles in space", 3).collections[0].get_offsets()
    np.testing.assert_array_equal(offsets, cloud.states.positions[3][:, :2])
    lines = shown_numbers("two numbers", 3).lines
    (now,) = [line for line in lines if line.get_marker() == "o" and line.get_markersize() == 7]
    np.testing.assert_array_equal(now.get_xydata()[0], dot.states[3])


def test_a_short_path_has_as_many_frames_as_saves():
    assert len(frames_png(made_path(np.array([2.0, 1.0]), states=jnp.ones((2, 4))), 24, dpi=50)) == 2


def test_an_animation_can_be_written(tmp_path: pathlib.Path):
    animation = animate_path(path_of("line"), num_frames=4)
    animation.save(tmp_path / "path.gif", writer="pillow", dpi=40)
    with Image.open(tmp_path / "path.gif") as image:
        assert image.n_frames == 4


def test_an_animation_without_frames_is_refused():
    with pytest.raises(ValueError, match="`num_frames` must be positive; got 0"):
        frames_png(path_of("line"), 0)
