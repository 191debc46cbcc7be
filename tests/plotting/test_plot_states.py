"""Every kind of state has a picture, and the picture carries the numbers of the state."""

from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.patches import StepPatch
from plot_helpers import MAKERS, bump, half_square, line_with, made_path, path_of, texts_outside

import thalweg as tw
from thalweg.plotting import plot_state
from thalweg.plotting._states import Saves, View, picture_of
from thalweg.plotting._style import private_figure, styled
from thalweg.plotting._vectors import draw_contours


def drawn(kind: str, *, size: tuple[float, float] = (9.0, 4.0), **view: Any) -> Any:
    """The picture of a whole path."""
    path = path_of(kind)
    with styled():
        figure = private_figure(*size)
        picture_of(path.final.state).draw_path(figure, Saves(path), View(**view))
    figure.canvas.draw()
    return figure


@pytest.mark.parametrize("kind", MAKERS)
def test_one_state_is_drawn_with_labelled_axes(kind: str):
    ax = plot_state(path_of(kind).final.state)
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert texts_outside(ax.figure) == []


def test_a_state_is_drawn_where_it_is_told():
    ax = private_figure(3, 2).subplots()
    assert plot_state(path_of("line").final.state, ax) is ax


def test_densities_on_the_line_are_curves_from_a_dashed_start_to_a_solid_end():
    path = path_of("line")
    ax = drawn("line").axes[0]
    x = path.final.state.grid.axis_centres(0)
    np.testing.assert_array_equal(line_with(ax, "start"), np.stack([x, path.states.values[0]], axis=1))
    np.testing.assert_array_equal(line_with(ax, "end"), np.stack([x, path.states.values[-1]], axis=1))
    styles = {line.get_label(): line.get_linestyle() for line in ax.lines}
    assert (styles["start"], styles["end"]) == ("--", "-")
    # All eight curves, in the order of time and ever darker.
    between = [line.get_ydata() for line in ax.lines]
    chosen = Saves(path).choose(8)
    np.testing.assert_array_equal(between, path.states.values[np.array(chosen)])


@pytest.mark.parametrize("kind", ["function", "state", "values"])
def test_the_reference_density_lies_over_the_curves(kind: str):
    final = path_of("line").final.state
    exact = tw.Gaussian(jnp.zeros(1), jnp.eye(1))
    grid = tw.GridDensity.from_log_density(exact.log_density, final.grid)
    reference = {"function": lambda x: jnp.exp(exact.log_density(x)), "state": exact, "values": grid.values}[kind]
    ax = plot_state(final, reference_state=reference)
    x, y = line_with(ax, "reference").T
    expected = grid.values if kind == "values" else np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(y, expected, rtol=1e-10)


def test_a_target_known_up_to_a_factor_is_scaled_to_mass_one():
    target = tw.Target(lambda x: 5.0 - half_square(x), 1)
    ax = plot_state(path_of("line").final.state, reference_state=target)
    x, y = line_with(ax, "reference").T
    assert np.trapezoid(y, x) == pytest.approx(1.0)


def test_densities_in_the_plane_are_heat_maps_with_one_colour_bar():
    path = path_of("plane")
    figure = drawn("plane")
    panels = [ax for ax in figure.axes if ax.images]
    chosen = Saves(path).choose(4)
    assert len(panels) == len(chosen) == 4
    assert len(figure.axes) == 5
    for ax, index in zip(panels, chosen, strict=True):
        # A row of the picture is one value of the second coordinate, from below.
        np.testing.assert_array_equal(ax.images[0].get_array(), np.asarray(path.states.values[index]).T)
        assert ax.images[0].get_extent() == [-2.0, 2.0, -1.5, 1.5]
        assert ax.images[0].origin == "lower"
        assert ax.images[0].norm is panels[0].images[0].norm
    assert panels[0].get_title(loc="left").startswith("$t$ = 0")


def test_a_colour_that_stands_for_more_is_said_to():
    grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (10, 10))
    peaked = np.zeros((10, 10))
    peaked[3, 4] = 100.0
    flat = np.ones((10, 10))
    path = made_path(states=tw.GridDensity(jnp.asarray(np.stack([peaked, flat, flat])), grid))
    figure = private_figure(9, 3)
    picture_of(path.final.state).draw_path(figure, Saves(path), View())
    first = figure.axes[0]
    assert first.get_title(loc="center") + first.get_title(loc="left") == "$t$ = 0, peak 100"
    (bar,) = [ax._colorbar for ax in figure.axes if hasattr(ax, "_colorbar")]
    assert bar.extend == "max"
    assert "square root" in bar.ax.get_ylabel()


def test_more_than_two_dimensions_are_shown_by_the_marginal_of_two():
    path = path_of("space")
    state = path.final.state
    ax = plot_state(state, coordinates=(2, 0))
    marginal = np.asarray(state.values).sum(axis=1) * state.grid.spacing[1]
    # The second of the two coordinates goes up: rows are the first axis of the grid, columns the third.
    np.testing.assert_allclose(ax.images[0].get_array(), marginal)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("$x_{3}$", "$x_{1}$")
    mass = np.sum(ax.images[0].get_array()) * state.grid.spacing[0] * state.grid.spacing[2]
    assert mass == pytest.approx(1.0)


def test_particles_on_the_line_are_histograms_of_their_mass():
    path = path_of("particles on a line")
    ax = drawn("particles on a line").axes[0]
    steps = {p.get_label(): p.get_data() for p in ax.patches if isinstance(p, StepPatch)}
    for label, index in (("start", 0), ("end", -1)):
        values, edges, _ = steps[label]
        expected, _ = np.histogram(path.states.positions[index, :, 0], edges, density=True)
        np.testing.assert_allclose(values, expected)
        assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)


def test_the_weights_of_particles_count_in_their_picture():
    log_weights = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    one = tw.Particles(jnp.array([[0.0], [1.0], [2.0]]), log_weights)
    heights, edges, _ = plot_state(one).patches[0].get_data()
    assert heights[0] * (edges[1] - edges[0]) == pytest.approx(0.7)
    two = tw.Particles(jnp.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]]), log_weights)
    (cloud,) = [c for c in plot_state(two).collections if isinstance(c, PathCollection)]
    np.testing.assert_allclose(cloud.get_sizes() / cloud.get_sizes().sum(), [0.7, 0.2, 0.1])


def test_particles_in_space_are_clouds_of_the_chosen_coordinates():
    path = path_of("particles in space")
    names = ("a", "b", "c")
    figure = drawn("particles in space", coordinates=(2, 0), names=names)
    chosen = Saves(path).choose(4, time_share=0.5)
    for ax, index in zip(figure.axes, chosen, strict=True):
        (cloud,) = ax.collections
        np.testing.assert_array_equal(cloud.get_offsets(), path.states.positions[index][:, jnp.array([2, 0])])
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("c", "a")


def test_a_frame_that_leaves_particles_out_says_how_many():
    positions = np.concatenate([np.random.default_rng(0).normal(size=(500, 2)), [[90.0, 0.0]]])
    ax = plot_state(tw.Particles(jnp.asarray(positions)))
    lower, upper = np.array([ax.get_xlim(), ax.get_ylim()]).T
    outside = int(np.sum(np.any((positions < lower) | (positions > upper), axis=1)))
    assert 1 <= outside < 10
    assert [text.get_text() for text in ax.texts] == [f"{outside} of 501 outside"]
    assert ax.get_xlim()[1] < 10


def test_reference_contours_of_a_gaussian_are_one_two_and_three_deviations():
    exact = tw.Gaussian(jnp.array([0.5, 0.0]), 0.25 * jnp.eye(2))
    state = tw.Particles(jnp.asarray(np.random.default_rng(0).normal(size=(200, 2))))
    ax = plot_state(state, reference_state=exact)
    (lines,) = [c for c in ax.collections if isinstance(c, matplotlib.contour.ContourSet)]
    radii = [np.linalg.norm(path.vertices - [0.5, 0.0], axis=1).mean() for path in lines.get_paths()]
    # The contour is interpolated on a grid of 121 points a side, some 0.06 apart.
    np.testing.assert_allclose(radii, [1.5, 1.0, 0.5], atol=0.01)


def test_gaussians_on_the_line_are_their_densities():
    path = path_of("gaussian on a line")
    ax = drawn("gaussian on a line").axes[0]
    x, y = line_with(ax, "end").T
    final = path.final.state
    expected = np.exp([float(final.log_density(jnp.array([value]))) for value in x[::100]])
    np.testing.assert_allclose(y[::100], expected, rtol=1e-10)


def test_gaussians_in_space_are_ellipses_of_two_deviations():
    path = path_of("gaussian in space")
    ax = drawn("gaussian in space", coordinates=(0, 2)).axes[0]
    final = path.final.state
    mean, covariance = np.asarray(final.mean)[[0, 2]], np.asarray(final.covariance)[np.ix_([0, 2], [0, 2])]
    offset = line_with(ax, "end") - mean
    distance = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
    np.testing.assert_allclose(distance, 4.0)
    np.testing.assert_allclose(line_with(ax, "mean")[-1], mean)
    # A circle looks like a circle.
    assert ax.get_aspect() == 1.0


def test_a_trajectory_runs_over_the_contour_lines_of_its_energy():
    path = path_of("two numbers")
    figure = drawn("two numbers", energy=lambda x: jnp.sum((x - 1.0) ** 2), reference=jnp.ones(2))
    left, right = figure.axes
    (trajectory,) = [c for c in left.collections if type(c) is LineCollection]
    points = np.asarray(path.states)
    np.testing.assert_array_equal(trajectory.get_segments(), np.stack([points[:-1], points[1:]], axis=1))
    np.testing.assert_array_equal(line_with(left, "start")[0], points[0])
    np.testing.assert_array_equal(line_with(left, "end")[0], points[-1])
    np.testing.assert_array_equal(line_with(left, "reference")[0], [1.0, 1.0])
    contours = [c for c in left.collections if isinstance(c, matplotlib.contour.ContourSet)]
    circle = contours[-1].get_paths()[0].vertices
    # The energy is a distance to (1, 1), so its contour lines are circles, on a grid 0.04 apart.
    assert np.ptp(np.linalg.norm(circle - 1.0, axis=1)) < 0.02
    np.testing.assert_array_equal(line_with(right, "$x_{2}$"), np.stack([path.times, points[:, 1]], axis=1))


def test_a_slow_energy_is_not_evaluated_everywhere(monkeypatch: pytest.MonkeyPatch):
    ticks = iter(range(0, 1000, 10))
    monkeypatch.setattr("thalweg.plotting._vectors.clock.perf_counter", lambda: float(next(ticks)))
    ax = private_figure(3, 3).subplots()
    draw_contours(ax, jnp.zeros(2), lambda x: jnp.sum(x**2), ((-1.0, 1.0), (-1.0, 1.0)))
    assert len(ax.collections) == 0


def test_a_narrow_figure_keeps_the_trajectory_alone():
    assert len(drawn("two numbers", size=(4, 4)).axes) == 1


def test_a_tree_is_drawn_component_by_component_with_names():
    path = path_of("tree")
    ax = drawn("tree").axes[0]
    np.testing.assert_array_equal(line_with(ax, "weights[1,2]")[:, 1], path.states["weights"][:, 1, 2])
    np.testing.assert_array_equal(line_with(ax, "offset")[:, 1], path.states["offset"])
    assert len(ax.lines) == 7


def test_of_many_components_those_that_moved_most_are_drawn():
    states = np.zeros((3, 12))
    states[:, 3:11] = np.arange(3)[:, None] * np.arange(1, 9)
    ax = private_figure(4, 3)
    picture_of(jnp.zeros(12)).draw_path(ax, Saves(made_path(states=jnp.asarray(states))), View())
    (panel,) = ax.axes
    assert [line.get_label() for line in panel.lines] == [f"$x_{{{i}}}$" for i in range(4, 12)]
    assert "8 of 12" in panel.get_title()


def test_components_of_different_sizes_are_drawn_relative_to_their_reference():
    states = jnp.asarray([[1.0, 1e-4], [2.0, 4e-4]])
    figure = private_figure(4, 4)
    picture_of(jnp.zeros(3)).draw_path(
        figure,
        Saves(made_path(states=jnp.concatenate([states, jnp.ones((2, 1))], axis=1))),
        View(reference=jnp.asarray([2.0, 5e-4, 1.0])),
    )
    (panel,) = figure.axes
    assert panel.get_ylabel() == "value relative to its reference"
    np.testing.assert_allclose(line_with(panel, "$x_{2}$")[:, 1], [0.2, 0.8])


def test_a_fit_is_drawn_through_its_data():
    path = path_of("fit")
    inputs = np.asarray(path.final.state.family.inputs)
    outputs = 2.0 + 0.5 * inputs
    left, right = drawn("fit", energy=tw.NegativeLogLikelihood(jnp.asarray(outputs))).axes
    np.testing.assert_array_equal(line_with(left, "data"), np.stack([inputs, outputs], axis=1))
    x, y = line_with(left, "end").T
    # On a straight line each of the five natural-gradient steps goes 0.4 of what is left of the way.
    np.testing.assert_allclose(y, (1 - 0.6**5) * (2.0 + 0.5 * x), atol=1e-8)
    np.testing.assert_array_equal(line_with(left, "start")[:, 1], np.zeros(len(x)))
    np.testing.assert_array_equal(line_with(right, r"$\theta_{2}$")[:, 1], path.states.params[:, 1])


def test_the_reference_of_a_fit_may_be_a_state_of_its_family():
    final = path_of("fit").final.state
    exact = tw.Parametric(jnp.array([2.0, 0.5]), final.family)
    right = drawn("fit", reference=exact).axes[1]
    across = {
        float(line.get_ydata()[0]) for line in right.lines if line.get_linestyle() != "-" and len(line.get_xdata())
    }
    assert across == {2.0, 0.5}


def test_coordinates_that_are_not_there_are_refused():
    state = path_of("particles in space").final.state
    with pytest.raises(ValueError, match="two different ones of 0…2; got"):
        plot_state(state, coordinates=(0, 3))
    with pytest.raises(ValueError, match="two different ones"):
        plot_state(state, coordinates=(1, 1))
    with pytest.raises(ValueError, match="must name all 3 coordinates; got 2"):
        plot_state(state, coordinate_names=("a", "b"))


def test_a_new_kind_of_state_brings_its_own_picture():
    class Mine:
        pass

    class Picture(type(picture_of(path_of("line").final.state))):
        def draw(self, ax: Any, state: Any, view: View) -> None:
            ax.set(xlabel="mine", ylabel="mine")

    picture_of.register(Mine, lambda state: Picture())
    assert plot_state(Mine()).get_xlabel() == "mine"


def test_the_density_that_is_drawn_is_where_the_bump_is():
    # A wrong orientation of the picture would put the peak elsewhere.
    grid = tw.Grid((-2.0, -1.0), (2.0, 3.0), (40, 20))
    ax = plot_state(tw.GridDensity.from_function(lambda x: bump(x - jnp.array([0.5, 1.5])), grid))
    row, column = np.unravel_index(np.argmax(ax.images[0].get_array()), (20, 40))
    left, right, low, high = ax.images[0].get_extent()
    x, y = left + (column + 0.5) * (right - left) / 40, low + (row + 0.5) * (high - low) / 20
    np.testing.assert_allclose([x, y], [1.0, 2.0], atol=0.11)
