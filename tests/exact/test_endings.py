"""What minimise() and fit() say of the point where they end: no false minimum, and no false alarm."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.diagnostics import far_away, surroundings
from thalweg.energies import as_energy
from thalweg.recipes import _ending

RNG = np.random.default_rng(8)

# One dimension: the function, where to begin, and how it ends.
LINE = {
    "inflection": (lambda x: x**3, 1.0, "unbounded"),
    "inflection on a height": (lambda x: 1000 + x**3, 1.0, "unbounded"),
    "no lower bound": (lambda x: -(x**2), 1.0, "unbounded"),
    "falls to zero": (lambda x: jnp.exp(-x), 1.0, "escaping"),
    "falls to one": (lambda x: 1 + jnp.exp(-x), 1.0, "escaping"),
    "falls by a power": (lambda x: 1 / (1 + x**2), 1.0, "escaping"),
    "falls ever more slowly": (lambda x: -jnp.log(x), 1.0, "escaping"),
    "corner": (lambda x: jnp.abs(x - 0.3) + 1, 1.0, "corner"),
    "constant": (lambda x: 0 * x + 1, 1.0, "flat_point"),
    "quartic": (lambda x: (x - 2) ** 4, 0.0, "minimum"),
    "nearly quartic": (lambda x: 1 + x**4 + 1e-6 * x**2, 1.0, "minimum"),
    "well on a height": (lambda x: 1e6 + jnp.cosh(x - 1), 0.0, "minimum"),
    "well under bounded tails": (lambda x: -1 / (1 + x**2), 5.0, "minimum"),
}
# Two dimensions.
PLANE = {
    "starts on a saddle": (lambda x, y: x**2 - y**2 + y**4, (0.0, 0.0), "minimum"),
    "arrives on a saddle": (lambda x, y: x**2 - y**2 + y**4, (1.0, 0.0), "minimum"),
    "no second derivatives": (lambda x, y: x**3 - 3 * x * y**2 + (x**2 + y**2) ** 2, (0.0, 0.0), "minimum"),
    "plateau beside a well": (lambda x, y: 1 + jnp.exp(-x) + y**2, (40.0, 1.0), "escaping"),
    "slope beside a well": (lambda x, y: x**2 + y, (1.0, 1.0), "unbounded"),
    "circle of minima": (lambda x, y: (x**2 + y**2 - 1) ** 2, (2.0, 1.0), "flat_point"),
    "quartic valley": (lambda x, y: x**2 + y**4, (1.0, 1.0), "flat_point"),
    "curved valley": (lambda x, y: 100 * (y - x**2) ** 2 + (1 - x) ** 2, (-1.2, 1.0), "minimum"),
    "units": (lambda x, y: 0.5e-8 * (x - 3e8) ** 2 + 0.5e8 * y**2, (1.0, 1.0), "minimum"),
    "infimum around a bend": (lambda x, y: (x * y - 1) ** 2 + x**2, (1.0, 2.0), "out_of_steps"),
    "cone": (lambda x, y: jnp.sqrt((x - 1) ** 2 + (y - 1) ** 2), (3.0, 2.0), "corner"),
    "edge beside a slope": (lambda x, y: jnp.maximum(x, -2 * x) + y**2, (1.0, 2.0), "corner"),
    "cosines": (lambda x, y: jnp.cos(x) + jnp.cos(y), (0.1, 0.2), "minimum"),
}


class OneOf(eqx.Module):
    """One of several functions of the coordinates; compiled once for all of them."""

    which: jax.Array
    functions: tuple = eqx.field(static=True)

    def __call__(self, x):
        return jax.lax.switch(self.which, self.functions, *x)


def ended(cases, name, dtype=float, **options):
    functions = tuple(fn for fn, _, _ in cases.values())
    energy = OneOf(jnp.asarray(list(cases).index(name)), functions)
    return tw.minimise(energy, jnp.atleast_1d(jnp.asarray(cases[name][1], dtype)), **options)


def name_of(path):
    return next(name for name in tw.RESULTS._name_to_item if bool(path.result == getattr(tw.RESULTS, name)))


@pytest.mark.parametrize("name", LINE)
def test_an_end_on_a_line_is_called_what_it_is(name):
    assert name_of(ended(LINE, name)) == LINE[name][2]


@pytest.mark.parametrize("name", PLANE)
def test_an_end_in_the_plane_is_called_what_it_is(name):
    assert name_of(ended(PLANE, name)) == PLANE[name][2]


@pytest.mark.parametrize("name", ["inflection", "falls to one", "falls by a power", "no lower bound", "corner"])
def test_in_single_precision_nothing_else_is_called_a_minimum(name):
    # Where the powers of 1 + x² overflow in the derivatives, nothing is known of the curvature.
    expected = {LINE[name][2]} | ({"flat_point"} if name == "falls by a power" else set())
    assert name_of(ended(LINE, name, jnp.float32)) in expected


@pytest.mark.parametrize("name", ["quartic", "well under bounded tails"])
def test_in_single_precision_a_minimum_is_called_one(name):
    assert name_of(ended(LINE, name, jnp.float32)) == "minimum"


@pytest.mark.parametrize(
    ("name", "num_steps", "expected"), [("cosines", 2, "out_of_steps"), ("slope beside a well", 20, "unbounded")]
)
def test_steps_that_run_out_do_not_hide_what_is_known(name, num_steps, expected):
    assert name_of(ended(PLANE, name, num_steps=num_steps)) == expected


def test_a_loose_tolerance_makes_no_minimum_far_from_one():
    path = ended(PLANE, "curved valley", tolerance=0.5)
    assert float(path.energies[-1]) > 1
    assert name_of(path) == "flat_point"


def test_a_plain_minimum_costs_no_further_look(monkeypatch):
    def look(*_):
        raise AssertionError("looked")

    monkeypatch.setattr(_ending, "surroundings", look)
    assert name_of(ended(PLANE, "cosines")) == "minimum"
    with pytest.raises(AssertionError, match="looked"):
        ended(PLANE, "plateau beside a well")


def test_beyond_a_saddle_the_path_goes_on():
    path = ended(PLANE, "no second derivatives")
    times, energies = np.asarray(path.times), np.asarray(path.energies)
    assert path.stats["saddles_left"] == 1
    assert path.stats["num_steps"] == int(path.final.num_steps) == len(path) - 1
    assert np.all(np.diff(times) >= 0)
    assert float(path.final.time) == times[-1]
    assert np.all(np.diff(energies) <= 0)
    jump = int(np.argmax(np.asarray(path.distances_squared) > 0))
    moved = np.asarray(path.states)[jump] - np.asarray(path.states)[jump - 1]
    np.testing.assert_allclose(path.distances_squared[jump], moved @ moved, rtol=1e-12)
    # The step off the saddle is an implicit one, D/α is what F falls by, and is counted as dissipated.
    np.testing.assert_allclose(
        np.diff(np.asarray(path.records["dissipated"]))[jump - 1], energies[jump - 1] - energies[jump], rtol=1e-12
    )
    # f = −r³ + r⁴ along the three valleys.
    np.testing.assert_allclose(energies[-1], -27 / 256, rtol=1e-12)


def test_rounding_next_to_a_saddle_does_not_hold_it():
    # At the inflection, across a steep valley, F is 1e-35 of terms whose rounding is 1e-27.
    path = tw.minimise(
        lambda x: (x[0] - x[1]) ** 3 + (x[0] - x[1]) ** 4 + 1e4 * (x[0] + x[1] - 1) ** 2, jnp.asarray([0.6, 0.4])
    )
    assert name_of(path) == "minimum"
    np.testing.assert_allclose(path.energies[-1], -27 / 256, rtol=1e-12)  # z³ + z⁴ at z = −3/4
    assert path.stats["saddles_left"] == 1
    assert tw.minimise(lambda x: jnp.sum(x**2), jnp.ones(2)).stats["saddles_left"] == 0


def test_a_saddle_that_a_krylov_space_does_not_see_is_left():
    curvatures = jnp.asarray(RNG.uniform(0.5, 2.0, 301)).at[7].set(-1.0)
    path = tw.minimise(lambda x: 0.5 * jnp.sum(curvatures * x**2) + 0.25 * x[7] ** 4, jnp.ones(301).at[7].set(0.0))
    assert path.stats["solver"] == "Krylov"
    assert path.stats["saddles_left"] == 1
    assert name_of(path) == "minimum"
    np.testing.assert_allclose(abs(path.final.state[7]), 1.0, rtol=1e-8)


def test_the_surroundings_are_known_by_products_too():
    class Energy(eqx.Module):
        curvatures: jax.Array

        def __call__(self, x):
            return 1 + 0.5 * jnp.sum(self.curvatures * x**2) + jnp.sum(x**4)

    plain = jnp.asarray(10.0 ** RNG.uniform(-3, 3, 1001))
    found = surroundings(as_energy(Energy(plain)), 1e-10 * jnp.ones(1001), 2.0)
    assert found.sign > 0
    assert found.is_quadratic
    found = surroundings(as_energy(Energy(plain.at[3].set(-1.0))), jnp.zeros(1001), 2.0)
    assert found.sign < 0
    assert int(np.argmax(np.abs(found.step))) == 3


def test_what_is_deep_is_not_without_bound():
    def deep(x):
        return -1e25 * jnp.tanh(1e-30 * x[0])

    far = far_away(as_energy(deep), jnp.zeros(1), jnp.ones(1), 1e-5)
    assert far.never_rises
    assert not far.without_bound
    assert far_away(as_energy(lambda x: -jnp.sqrt(1 + x[0])), jnp.zeros(1), jnp.ones(1), 1e-5).without_bound
    # A minimum at a distance of 10²⁰ steps.
    assert not far_away(as_energy(lambda x: 1e-20 * x[0] ** 2 - x[0]), jnp.zeros(1), jnp.ones(1), 1.0).never_rises


def test_a_krylov_space_that_is_exhausted_has_told_everything():
    assert tw.stationary_point(lambda x: jnp.sum(x**2), jnp.zeros(1001)).kind == "minimum"
    assert tw.stationary_point(lambda x: jnp.sum(x[1:] ** 2) - x[0] ** 2, jnp.zeros(1001)).kind == "saddle"


def separable():
    inputs = jnp.asarray(RNG.normal(size=(60, 2)))
    outputs = jnp.asarray(np.asarray(inputs @ jnp.asarray([1.0, -1.0])) > 0, float)
    return (lambda p, x: x @ p), inputs, outputs, jnp.zeros(2), tw.likelihoods.Bernoulli()


def underdetermined():
    return (lambda p, x: x @ p), jnp.asarray(RNG.normal(size=(3, 5))), jnp.ones(3), jnp.zeros(5), None


def symmetric():
    inputs = jnp.linspace(0.0, 3.0, 30)
    return (lambda p, x: p[0] * p[1] * x), inputs, inputs, jnp.zeros(2), None


@pytest.mark.parametrize(
    ("problem", "kind"),
    [(separable, "escaping"), (underdetermined, "flat_point"), (symmetric, "saddle_point")],
)
def test_a_fit_is_called_what_it_is(problem, kind):
    model, inputs, outputs, params, likelihood = problem()
    path = tw.fit(model, inputs, outputs, params, likelihood=likelihood, num_steps=100)
    assert name_of(path) == kind
