"""The look of the figures: put on and taken off, readable for all, and honest about numbers."""

import importlib
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from plot_helpers import path_of

from thalweg.plotting import _style, plot_path


def test_a_figure_leaves_the_users_settings_as_they_were():
    with matplotlib.rc_context({"lines.linewidth": 7.5, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        plot_path(path_of("line"))
        assert dict(matplotlib.rcParams) == before


def test_a_figure_does_not_look_like_the_users_settings():
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        figure = plot_path(path_of("line"))
    assert matplotlib.colors.to_hex(figure.axes[0].get_facecolor()) == "#ffffff"
    assert figure.axes[0].xaxis.label.get_size() == _style.STYLE["axes.labelsize"]


def test_without_a_window_a_figure_is_not_kept_by_pyplot():
    _style.new_figure(2, 2)
    assert plt.get_fignums() == []


def test_with_a_window_a_figure_is_one_that_pyplot_can_show(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "TkAgg")
    figure = _style.new_figure(2, 2)
    assert plt.get_fignums() == [figure.number]
    plt.close(figure)


@pytest.mark.parametrize("colours", [_style.DENSITY_MAP, _style.TIME_MAP])
def test_colour_maps_darken_by_the_same_amount_at_every_step(colours):
    lightness = _style.oklab(np.asarray(colours.colors))[:, 0]
    steps = np.diff(lightness)
    assert np.all(steps < 0)
    # Colours that sRGB cannot show are moved to its edge, which costs a little evenness.
    assert np.ptp(steps) < 0.1 * abs(steps.mean())


def test_oklab_knows_white_black_and_red():
    # Ottosson (2020): white is (1, 0, 0); red has lightness 0.628 and a positive first hue axis of 0.225.
    white, black, red = _style.oklab([[1, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert np.allclose(white, [1, 0, 0], atol=1e-4)
    assert np.allclose(black, 0, atol=1e-6)
    assert np.allclose(red, [0.62796, 0.22486, 0.12585], atol=1e-4)


def test_the_reference_stays_apart_from_the_path_without_red_and_green():
    # The blue-yellow axis and the lightness are what deuteranopes and protanopes keep.
    path, reference = (
        _style.oklab(matplotlib.colors.to_rgb(colour))[[0, 2]] for colour in (_style.PATH, _style.REFERENCE)
    )
    assert np.linalg.norm(path - reference) > 0.2


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.1607, 4, "0.1607"),
        (-1.5, 4, "−1.5"),
        (1.078e4, 4, "1.078×10⁴"),
        (3e-22, 2, "3×10⁻²²"),
        (5403, 4, "5403"),
        (float("nan"), 4, "nan"),
    ],
)
def test_numbers_are_written_for_people(value: float, digits: int, text: str):
    assert _style.number(value, digits) == text


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("thalweg.plotting")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"thalweg\[plot\]") as caught:
        importlib.import_module("thalweg.plotting")
    assert len(str(caught.value).splitlines()) <= 5
    assert "matplotlib" in str(caught.value)
