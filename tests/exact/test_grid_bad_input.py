"""What is wrong with an energy of a density on a grid is said before anything is compiled, by the cell; walls work."""

import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.energies import check_on_grid

W2, STEP = tw.Wasserstein(), tw.Continuous(0.01)
SQUARE = tw.Grid((-1.0, 0.0), (1.0, 1.5), (8, 6))
LINE = tw.Grid(-1.0, 1.0, 10)


def flat(grid=SQUARE):
    return tw.GridDensity.normalised(jnp.ones(grid.shape), grid)


def half(grid=SQUARE):
    """A density that is zero where x < 0."""
    return tw.GridDensity.from_function(lambda x: jnp.where(x[0] > 0, 1.0 + x[0], 0.0), grid)


def wall(x):
    return jnp.where(x[0] > 0, jnp.sum(x**2), jnp.inf)


def nan_kernel(z):
    return jnp.where(z[0] > 1.6, jnp.nan, jnp.sum(z**2))


def nan_at(index):
    return jnp.zeros(SQUARE.shape).at[index].set(jnp.nan)


CASES = {
    "nan in V": (
        tw.PotentialEnergy(lambda x: jnp.sqrt(x[0])),
        flat(),
        ["nan", "24 of 48 cells", "x = [-0.875, 0.125]"],
    ),
    "nan in the cells of V": (tw.PotentialEnergy(nan_at((3, 2)), SQUARE), flat(), ["1 of 48 cells", "[-0.125, 0.625]"]),
    "minus infinity in V": (tw.PotentialEnergy(lambda x: -wall(x)), half(), ["-inf", "24 of 48"]),
    "mass behind a wall": (tw.PotentialEnergy(wall) + tw.Entropy(), flat(), ["mass where the potential is infinite"]),
    "nan in W": (tw.InteractionEnergy(nan_kernel), flat(), ["kernel is nan", "displacements, first at [1.75, 0.0]"]),
    "infinite at zero": (
        tw.InteractionEnergy(lambda z: -jnp.log(jnp.sum(z**2))),
        flat(),
        ["inf at 1 of", "tw.kernels.newtonian(dim)", "cell_average"],
    ),
    "nan in a kernel of values": (
        tw.InteractionEnergy(jnp.zeros((3, 3)).at[0, 1].set(jnp.nan)),
        flat(),
        ["kernel is nan", "[0.25, 0.0]"],
    ),
    "kernel larger than the grid": (
        tw.InteractionEnergy(jnp.ones((17, 3))),
        flat(),
        ["larger than the grid", "(17, 3)", "at most (15, 11)"],
    ),
    "kernel larger than the torus": (
        tw.InteractionEnergy(jnp.ones(11)),
        flat(tw.Grid(0.0, 1.0, 10, tw.Periodic())),
        ["larger than the grid", "at most (9,)"],
    ),
    "kernel without a middle": (tw.InteractionEnergy(jnp.ones((4, 3))), flat(), ["odd number of entries"]),
    "kernel of another dimension": (tw.InteractionEnergy(jnp.ones(3)), flat(), ["2 axes", "(3,)"]),
    "newtonian of another dimension": (tw.InteractionEnergy(tw.kernels.newtonian(3)), flat(), ["newtonian(2)"]),
    "newtonian on a cylinder": (
        tw.InteractionEnergy(tw.kernels.newtonian(2)),
        flat(tw.Grid((0.0, 0.0), (1.0, 1.0), (4, 4), (tw.NoFlux(), tw.Periodic()))),
        ["all axes periodic, or none"],
    ),
    "not integrable": (tw.InteractionEnergy(tw.kernels.attractive_repulsive(2, -2)), flat(), ["not integrable"]),
    "potential of another grid": (tw.PotentialEnergy(jnp.ones(10), LINE), flat(), ["another grid", "(10,)", "(8, 6)"]),
    "target of another grid": (tw.KL(flat(LINE)), flat(), ["another grid"]),
    "discrepancy to another grid": (
        tw.MaximumMeanDiscrepancy(flat(LINE), tw.kernels.gaussian(1.0)),
        flat(),
        ["another grid"],
    ),
    "samples of another dimension": (
        tw.MaximumMeanDiscrepancy(tw.Samples(jnp.ones((3, 1))), tw.kernels.gaussian(1.0)),
        flat(),
        ["1 dimensions", "in 2"],
    ),
    "kl to a target with vacuum": (tw.KL(half()), flat(), ["mass where the potential is infinite", "24 of 48"]),
    "neyman to a target with vacuum": (
        tw.FDivergence(tw.generators.neyman_chi2, half()),
        flat(),
        ["`FDivergence` is infinite", "24 of 48 cells"],
    ),
    "fisher information to a target with vacuum": (
        tw.FisherInformation(half()),
        flat(),
        ["`FisherInformation` is infinite", "24 of 48 cells"],
    ),
    "no room under the ceiling": (tw.Congestion(0.3), flat(), ["no room", "0.9"]),
    "above the ceiling": (tw.Congestion(0.5), half(), ["lies above the ceiling", "at most"]),
}


def one_step(energy, state):
    tw.flow(energy, state, geometry=W2, scheme=STEP, num_steps=1)


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_in_at_most_five_lines(name):
    energy, state, words = CASES[name]
    # Most schemes refuse a ceiling for another reason.
    check = check_on_grid if "ceiling" in name else one_step
    with pytest.raises(ValueError, match=".") as caught:
        check(energy, state)
    text = str(caught.value)
    assert len(text.splitlines()) <= 5
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tw.PotentialEnergy(jnp.ones(10)), "tw.PotentialEnergy(values, grid)"),
        (lambda: tw.PotentialEnergy(jnp.ones(9), LINE), "shape (10,); got shape (9,)"),
        (lambda: tw.Congestion(0.0), "must be positive"),
        (lambda: tw.kernels.gaussian(-1.0), "bandwidth"),
        (lambda: tw.kernels.newtonian(4), "1, 2 and 3"),
        (lambda: tw.kernels.attractive_repulsive(1, 2), "a > b"),
        (lambda: tw.MaximumMeanDiscrepancy(jnp.ones((3, 2)), tw.kernels.gaussian(1.0)), "tw.Samples(values)"),
        (lambda: tw.KL(tw.Samples(jnp.ones((3, 2)))), "tw.GridDensity"),
        (lambda: tw.second_variation(tw.Entropy(), flat(), jnp.ones(3)), "shapes of what moves"),
        (lambda: tw.decompose(-1.0 * tw.Congestion(1.0)), "positive factor"),
        (lambda: tw.GridDensity.normalised(jnp.zeros(10), LINE), "positive sum"),
        (lambda: tw.GridDensity.normalised(jnp.ones(10).at[2].set(-1.0), LINE), "the smallest is -1"),
    ],
)
def test_a_wrong_value_is_refused_where_it_is_given(make, words):
    with pytest.raises(ValueError, match=".") as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("energy", "state"),
    [
        (tw.DirichletEnergy(), tw.Gaussian(jnp.zeros(2), jnp.eye(2))),
        (tw.FisherInformation(), tw.Particles(jnp.ones((3, 2)))),
        (tw.PotentialEnergy(jnp.ones(SQUARE.shape), SQUARE), tw.Particles(jnp.ones((3, 2)))),
        (tw.InteractionEnergy(jnp.ones((3, 3))), tw.Particles(jnp.ones((3, 2)))),
        (tw.InteractionEnergy(tw.kernels.newtonian(2)), tw.Gaussian(jnp.zeros(2), jnp.eye(2))),
        (tw.MaximumMeanDiscrepancy(flat(), tw.kernels.gaussian(1.0)), tw.Particles(jnp.ones((3, 2)))),
        (tw.FDivergence(tw.generators.forward_kl, flat()), tw.Gaussian(jnp.zeros(2), jnp.eye(2))),
    ],
)
def test_what_needs_a_grid_says_so(energy, state):
    reason = tw.why_unsupported(energy, state, geometry=W2, scheme=tw.Explicit(0.01))
    assert reason is not None
    assert "rid" in reason
    assert len(reason.splitlines()) <= 5


@pytest.mark.parametrize("scheme", [STEP, tw.Explicit(0.01), tw.Constrained(0.01), tw.LinearlyImplicit(0.01)])
def test_a_ceiling_is_refused_by_schemes_that_would_not_keep_it(scheme):
    reason = tw.why_unsupported(tw.KL(flat()) + tw.Congestion(2.0), flat(), geometry=W2, scheme=scheme)
    assert reason is not None
    assert "Congestion" in reason


def test_the_least_ceiling_counts_and_its_value_is_zero_or_infinite():
    energy = tw.Congestion(2.0) + 3 * tw.Congestion(0.6) + tw.Entropy()
    assert tw.decompose(energy).ceiling == 0.6
    assert not tw.decompose(energy).is_linear
    assert np.isfinite(energy(flat()))
    assert np.isposinf(energy(half()))


def test_an_infinite_potential_is_a_wall():
    """The flow stays on its side and ends in the Gibbs state there; no other cell ever holds mass."""
    energy = tw.PotentialEnergy(wall) + 0.5 * tw.Entropy()
    path = tw.flow(energy, half(), geometry=W2, scheme=tw.Continuous(0.5), final_time=8.0)
    gibbs = tw.GridDensity.from_log_density(lambda x: -wall(x) / 0.5, SQUARE)
    values = np.asarray(path.states.values)
    assert np.all(values[:, np.asarray(gibbs.values) == 0] == 0)
    np.testing.assert_allclose(path.final.state.values, gibbs.values, atol=1e-6)
    np.testing.assert_allclose(np.sum(values, axis=(1, 2)) * SQUARE.cell_volume, 1, atol=1e-13)
    assert np.all(np.diff(path.energies) <= 1e-13)


def test_a_target_with_vacuum_is_a_wall_for_a_start_inside():
    path = tw.flow(tw.KL(half()), half(), geometry=W2, scheme=STEP, num_steps=2)
    np.testing.assert_allclose(path.final.state.values, half().values, atol=1e-13)


def test_values_outside_of_the_domain_never_enter():
    """Neither e(0) ≠ 0, nor a function that is NaN there."""
    grid = SQUARE.masked(lambda x: x[0] > 0)
    state = half(grid)
    inside = np.asarray(grid.mask)
    volume = float(np.sum(inside)) * grid.cell_volume
    ones = tw.InternalEnergy(lambda q: jnp.cos(q) ** 2 + jnp.sin(q) ** 2)
    np.testing.assert_allclose(ones(state), volume, rtol=1e-14)
    energies = [
        tw.PotentialEnergy(lambda x: jnp.sqrt(x[0])),
        tw.FDivergence(tw.generators.neyman_chi2, tw.Target(lambda x: jnp.log(x[0]), 2)),
        tw.KL(tw.Target(lambda x: jnp.log(x[0]), 2)),
        tw.InternalEnergy(lambda q: 1 / q),
    ]
    for energy in energies:
        assert np.isfinite(energy(state))
        variation = np.asarray(tw.first_variation(energy, state).regular.values)
        assert np.all(np.isfinite(variation))
        assert np.all(variation[~inside] == 0)


@pytest.mark.parametrize("values", [jnp.ones(10, int), jnp.ones(10, bool)])
def test_values_that_are_not_floating_point_numbers_are_refused_with_advice(values):
    with pytest.raises(TypeError, match="floating-point numbers.*\n.*normalised"):
        tw.GridDensity(values, tw.Grid(0.0, 1.0, 10))
