"""The curves of a path say what they show: which energy, above what, and what could not be measured."""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import StepPatch
from plot_helpers import MAKERS, drawn_panels, line_with, made_path, path_of, texts_outside

import thalweg as tw
from thalweg._result import name_of
from thalweg.plotting import compare_paths, plot_path
from thalweg.plotting._curves import (
    draw_dissipation,
    draw_distances,
    draw_energy,
    draw_energy_strip,
    energy_curve,
    time_label,
    times_of,
)
from thalweg.plotting._states import Saves
from thalweg.plotting._style import private_figure, styled
from thalweg.plotting._words import findings

DECAY = 2.0 + 10.0 ** -np.arange(8.0)


def axes():
    with styled():
        return private_figure(4, 3).subplots()


def test_the_energy_is_drawn_above_a_reference_that_lies_below_it():
    ax = axes()
    draw_energy(ax, made_path(DECAY), reference_energy=2.0)
    assert ax.get_yscale() == "log"
    assert "above the reference" in ax.get_ylabel()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), DECAY - 2.0, rtol=1e-9)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(8.0))


def test_an_energy_of_narrow_range_is_drawn_as_it_is_beside_its_reference():
    ax = axes()
    draw_energy(ax, made_path(np.array([3.0, 2.5, 2.2])), reference_energy=2.0)
    assert (ax.get_yscale(), ax.get_ylabel()) == ("linear", "energy $F$")
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3.0, 2.5, 2.2])
    assert set(line_with(ax, "reference")[:, 1]) == {2.0}


def test_a_reference_above_the_energies_is_not_subtracted():
    curve = energy_curve(made_path(DECAY), reference_energy=2.001)
    assert curve is not None
    assert "above the lowest" in curve.label
    assert np.nanmin(curve.values) > 0


def test_a_path_that_is_still_falling_has_no_logarithm_above_its_own_end():
    falling = np.exp(-np.linspace(0, 6, 20))
    curve = energy_curve(made_path(falling))
    assert curve is not None
    assert not curve.is_logarithmic


def test_a_path_at_rest_is_drawn_above_its_lowest_value_and_says_since_when_it_rests():
    energies = np.concatenate([DECAY, [2.0, 2.0, 2.0]])
    ax = axes()
    draw_energy(ax, made_path(energies))
    assert ax.get_yscale() == "log"
    assert "above the lowest" in ax.get_ylabel()
    np.testing.assert_allclose(ax.lines[0].get_ydata()[:8], DECAY - 2.0, rtol=1e-9)
    assert np.all(np.isnan(ax.lines[0].get_ydata()[8:]))
    assert [text.get_text() for text in ax.texts] == ["to rounding at its lowest from 8 on"]
    # The time goes on where there is nothing to draw.
    assert ax.get_xlim()[1] > 10


def test_differences_that_are_rounding_are_not_drawn():
    energies = np.array([1e6 + 10.0, 1e6 + 1.0, 1e6 + 0.1, 1e6 + 1e-10, 1e6])
    curve = energy_curve(made_path(energies))
    assert curve is not None
    np.testing.assert_array_equal(np.isnan(curve.values), [False, False, False, True, True])


def test_the_dissipation_rate_stands_beside_the_energy_lost_between_saves():
    times = np.array([0.0, 0.5, 2.0])
    path = made_path(np.array([3.0, 2.0, 1.7]), rates=np.array([3.0, 1.0, 0.1]), times=times)
    ax = axes()
    draw_dissipation(ax, path)
    np.testing.assert_array_equal(line_with(ax, r"$\|\xi\|_*^2$"), np.stack([times, [3.0, 1.0, 0.1]], axis=1))
    (steps,) = [patch for patch in ax.patches if isinstance(patch, StepPatch)]
    np.testing.assert_allclose(steps.get_data().values, [1.0 / 0.5, 0.3 / 1.5])
    np.testing.assert_array_equal(steps.get_data().edges, times)
    assert "energy per time" in ax.get_ylabel()


def test_along_arc_length_the_slope_is_the_root_of_the_rate():
    path = made_path(np.array([3.0, 2.0, 1.7]), rates=np.array([9.0, 4.0, 1.0]), stats={"parameter": "arc length"})
    ax = axes()
    draw_dissipation(ax, path)
    np.testing.assert_array_equal(line_with(ax, r"$\|\xi\|_*$")[:, 1], [3.0, 2.0, 1.0])
    assert ax.get_xlabel() == "arc length"
    assert "energy per arc length" in ax.get_ylabel()


def test_the_step_length_is_the_root_of_the_squared_distance_and_leaves_the_start_out():
    ax = axes()
    draw_distances(ax, made_path(distances=np.array([0.0, 4.0, 1.0, 0.25])))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [[1, 2], [2, 1], [3, 0.5]])
    assert ax.get_ylabel()


def test_the_dot_on_the_energy_stands_at_the_save_that_is_shown():
    ax = axes()
    update = draw_energy_strip(ax, made_path(np.array([3.0, 2.0, 1.7])))
    update(1)
    (dot,) = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(dot.get_xydata(), [[1.0, 2.0]])


@pytest.mark.parametrize("kind", MAKERS)
def test_an_overview_has_labels_on_every_panel_and_nothing_is_cut_off(kind: str):
    figure = plot_path(path_of(kind), title="A title of $5 and more")
    panels = drawn_panels(figure)
    for ax in panels:
        own = ax.get_subplotspec()
        # Panels in a row share the label of the outermost one.
        assert ax.get_xlabel() or not own.is_last_row()
        assert ax.get_ylabel() or not own.is_first_col()
    assert any(ax.get_xlabel() == "time" for ax in panels)
    assert texts_outside(figure) == []


@functools.cache
def without_time():
    inputs = jnp.linspace(0.0, 3.0, 9)
    outputs = 2 * jnp.exp(-1.5 * inputs)
    path = tw.fit(lambda p, t: p[0] * jnp.exp(-p[1] * t), inputs, outputs, jnp.ones(2))
    return path, tw.HalfDeviance(outputs)


def test_steps_without_a_limit_are_drawn_by_their_number_and_have_no_rate():
    path, _ = without_time()
    assert float(path.times[-1]) > 1e10
    figure = plot_path(path)
    energy, gradient, _, parameters = drawn_panels(figure)
    for ax in (energy, gradient, parameters):
        assert ax.get_xlabel() == "step"
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(len(path)))
    assert gradient.get_yscale() == "log"
    assert not [patch for patch in gradient.patches if isinstance(patch, StepPatch)]
    shown = np.asarray(path.dissipation_rates) > 0
    np.testing.assert_array_equal(gradient.lines[0].get_ydata()[shown], path.dissipation_rates[shown])
    assert Saves(path).stamp(2) == "step 2"
    assert texts_outside(figure) == []


def test_steps_that_were_not_all_saved_are_counted_by_saves():
    path = made_path(DECAY, stats={"times": "of no flow"})
    path = path.but(final=eqx.tree_at(lambda final: final.num_steps, path.final, jnp.asarray(14)))
    ax = axes()
    draw_energy(ax, path)
    assert ax.get_xlabel() == "save"
    # Proximal Newton steps: lengths, but not along a flow.
    assert time_label(made_path(DECAY, stats={"parameter": "arc length", "curvature": "dense"})) == "step"


def test_a_step_size_that_is_given_is_a_time():
    path = tw.flow(
        lambda x: jnp.sum(x**2), jnp.ones(2), geometry=tw.Euclidean(), scheme=tw.LinearlyImplicit(0.1), num_steps=3
    )
    assert time_label(path) == "time"
    np.testing.assert_allclose(times_of(path), [0.0, 0.1, 0.2, 0.3])


def test_nothing_is_said_of_a_balance_where_there_is_no_time():
    path, _ = without_time()
    said = " ".join(findings(path, []))
    assert f"over {len(path) - 1} steps" in said
    assert "squared norm of the gradient fell" in said
    assert "dissipated" not in said


def test_a_fit_is_drawn_with_its_data_if_the_energy_is_given():
    path, energy = without_time()
    data = line_with(drawn_panels(path.plot(energy=energy))[2], "data")
    np.testing.assert_array_equal(data[:, 1], energy.outputs)
    assert "data" not in [line.get_label() for line in drawn_panels(path.plot())[2].lines]


def test_a_path_prints_in_one_short_line():
    path, _ = without_time()
    first, last = path.energies[0], path.energies[-1]
    assert repr(path) == (
        f"Path({len(path)} saves; {len(path) - 1} steps; energy {first:.6g} → {last:.6g}; {name_of(path.result)})"
    )
    assert repr(path_of("line")).startswith("Path(9 saves; 8 steps; time 0.08; energy ")
    assert "arc length 7" in repr(made_path(DECAY, stats={"parameter": "arc length"}))


def test_what_is_not_available_is_said_in_the_figure_and_not_drawn():
    path = path_of("particles on a line")
    assert "energies" in path.unavailable
    figure = plot_path(path)
    energy, histogram = drawn_panels(figure)
    np.testing.assert_array_equal(energy.lines[0].get_ydata(), path.measurements["regular_energy"])
    assert energy.get_ylabel() == "regular energy"
    assert "Energy without its entropy" in energy.get_title(loc="left")
    note = " ".join(figure.get_supxlabel().split())
    assert note.startswith("Not available: energies and dissipation rates (the entropy of particles")
    assert histogram.get_ylabel() == "density"


def test_where_all_was_measured_no_note_stands_below():
    assert plot_path(path_of("line")).get_supxlabel() == ""


def test_a_path_that_failed_at_its_first_step_is_still_drawn():
    figure = plot_path(made_path(np.array([1.0]), rates=np.array([2.0]), states=jnp.ones((1, 2))))
    assert texts_outside(figure) == []


def test_a_path_plots_itself():
    figure = path_of("two numbers").plot(title="mine")
    assert figure.get_suptitle() == "mine"


def test_saves_are_chosen_where_the_state_changes():
    states = jnp.asarray(np.exp(-np.arange(100.0))[:, None])
    saves = Saves(made_path(states=states))
    chosen = saves.choose(5)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, 99, 5)
    # Nearly all change happens in the first ten of a hundred saves.
    assert chosen[3] < 10
    assert chosen == sorted(set(chosen))


def test_saves_at_equal_times_are_chosen_where_asked():
    states = jnp.asarray(np.exp(-np.arange(101.0))[:, None])
    assert Saves(made_path(states=states)).choose(5, time_share=1.0) == [0, 25, 50, 75, 100]


def test_a_state_that_never_changes_is_shown_at_equal_times():
    assert Saves(made_path(np.ones(9))).choose(5) == [0, 2, 4, 6, 8]


def test_several_paths_share_an_axis():
    one, other = made_path(DECAY), made_path(DECAY + 1.0)
    figure = compare_paths({"one": one, "an$other": other})
    top, *below = drawn_panels(figure)
    assert (top.get_yscale(), top.get_ylabel()) == ("log", "energy above the lowest of all")
    np.testing.assert_allclose(line_with(top, "one")[:-1, 1], DECAY[:-1] - DECAY[-1])
    np.testing.assert_allclose(line_with(top, r"an\$other")[:, 1], DECAY + 1.0 - DECAY[-1])
    assert len(below) == 2
    assert texts_outside(figure) == []


def test_energies_of_different_kinds_do_not_share_an_axis():
    with pytest.raises(ValueError, match="cannot share an energy axis"):
        compare_paths({"a": made_path(DECAY), "b": path_of("particles on a line")})
    with pytest.raises(ValueError, match="at least one"):
        compare_paths({})
