"""What a user gets wrong is said before anything is compiled, in at most five lines, naming the argument."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw

PLANE, STEP, W2 = tw.Euclidean(), tw.Explicit(0.1), tw.Wasserstein()
GRID = tw.Grid(-1.0, 1.0, 20)
SQUARE = tw.Grid((0.0, 0.0), (1.0, 1.0), (5, 5))
ROWS = jnp.ones((5, 3))


def bowl(x):
    return jnp.sum(x**2)


def normal(dim):
    return tw.Target(lambda x: -0.5 * jnp.sum(x**2), dim)


def flat(grid=GRID):
    return tw.GridDensity.normalised(jnp.ones(grid.shape), grid)


def points(dim=2):
    return tw.Particles(jax.random.normal(jax.random.key(0), (6, dim)))


def vector_flow(energy, start, **options):
    return tw.flow(energy, start, **{"geometry": PLANE, "scheme": STEP, "num_steps": 1, **options})


def density_flow(energy, state, scheme, **options):
    return tw.flow(energy, state, geometry=W2, scheme=scheme, num_steps=1, **options)


def line(params, inputs):
    return inputs @ params


def linear_fit(model=line, *, inputs=ROWS, **options):
    return tw.fit(model, inputs, jnp.ones(5), jnp.ones(3), **options)


def returns_nothing(*_):
    pass


CASES = {
    "integers": (lambda: vector_flow(bowl, jnp.arange(3)), ValueError, "int"),
    "a list": (lambda: vector_flow(bowl, [1.0, 2.0]), ValueError, "jnp.array"),
    "nan start": (lambda: vector_flow(bowl, jnp.array([jnp.nan])), ValueError, "`initial_state` must be finite"),
    "complex": (lambda: vector_flow(bowl, jnp.ones(2, complex)), ValueError, "complex128"),
    "empty": (lambda: vector_flow(bowl, {}), ValueError, "empty"),
    "wrong shapes inside": (lambda: vector_flow(lambda x: x @ jnp.ones(3), jnp.ones(2)), ValueError, "`energy` failed"),
    "not jax": (lambda: vector_flow(lambda x: float(x[0]), jnp.ones(2)), ValueError, "jax.numpy"),
    "nan energy": (lambda: vector_flow(lambda x: jnp.log(-(x[0] ** 2)), jnp.ones(2)), ValueError, "not finite"),
    "no energy": (lambda: vector_flow(None, jnp.ones(2)), TypeError, "`energy`"),
    "both ends": (lambda: vector_flow(bowl, jnp.ones(2), final_time=1.0), ValueError, "exactly one"),
    "no end": (lambda: vector_flow(bowl, jnp.ones(2), num_steps=None), ValueError, "exactly one"),
    "no steps": (lambda: vector_flow(bowl, jnp.ones(2), num_steps=0), ValueError, "`num_steps`"),
    "save_every": (lambda: vector_flow(bowl, jnp.ones(2), save_every=0), ValueError, "`save_every`"),
    "negative step": (lambda: tw.Explicit(-1.0), ValueError, "`step_size`"),
    "zero radius": (lambda: tw.Constrained(0.0), ValueError, "`radius`"),
    "arc length": (
        lambda: vector_flow(bowl, jnp.ones(2), scheme=tw.Constrained(0.1), num_steps=None, final_time=1.0),
        ValueError,
        "arc length",
    ),
    "no key": (lambda: density_flow(tw.KL(normal(2)), points(), tw.Langevin(0.1)), ValueError, "`key`"),
    "entropy of points": (lambda: density_flow(tw.KL(normal(2)), points(), STEP), TypeError, "KernelDensity"),
    "no entropy": (
        lambda: density_flow(tw.PotentialEnergy(bowl), points(), tw.Langevin(0.1), key=jax.random.key(0)),
        TypeError,
        "no entropy",
    ),
    "euclidean density": (
        lambda: tw.flow(tw.Entropy(), flat(), geometry=PLANE, scheme=STEP, num_steps=1),
        TypeError,
        "GridDensity",
    ),
    "wasserstein vector": (lambda: vector_flow(bowl, jnp.ones(2), geometry=W2), TypeError, "plain vector"),
    "entropy of a vector": (lambda: vector_flow(tw.Entropy(), jnp.ones(2)), TypeError, "density state"),
    "jko in 2d": (
        lambda: density_flow(tw.Entropy(), flat(SQUARE), tw.Proximal(0.1, tw.LineJKO())),
        TypeError,
        "one-dimension",
    ),
    "proximal corner": (
        lambda: vector_flow(bowl, jnp.ones(2), geometry=tw.MaxNorm(), scheme=tw.Proximal(0.1)),
        TypeError,
        "tw.Explicit",
    ),
    "array log density": (lambda: tw.Target(lambda x: x, 2), ValueError, "`log_density`"),
    "dimensions": (
        lambda: density_flow(tw.KL(normal(3)), points(), tw.Langevin(0.1), key=jax.random.key(0)),
        ValueError,
        "3 dimensions",
    ),
    "nan log density": (
        lambda: density_flow(
            tw.KL(tw.Target(lambda x: jnp.sum(jnp.log(-(x**2))), 2)), points(), tw.Langevin(0.1), key=jax.random.key(0)
        ),
        ValueError,
        "not finite",
    ),
    "negative density": (lambda: tw.GridDensity(jnp.ones(20) - 2, GRID), ValueError, "negative"),
    "unnormalised": (lambda: tw.GridDensity(jnp.ones(20), GRID), ValueError, "GridDensity.normalised"),
    "density shape": (lambda: tw.GridDensity(jnp.ones(19), GRID), ValueError, r"\(19,\)"),
    "upside-down grid": (lambda: tw.Grid(1.0, -1.0, 10), ValueError, "lower < upper"),
    "wall": (
        lambda: density_flow(
            tw.PotentialEnergy(lambda x: jnp.where(x[0] > 0, jnp.inf, 0.0)) + tw.Entropy(), flat(), tw.Continuous(0.1)
        ),
        ValueError,
        "10 of 20",
    ),
    "points in one axis": (lambda: tw.Particles(jnp.ones(5)), ValueError, "num_particles, dim"),
    "weights": (lambda: tw.Particles(jnp.ones((2, 1)), jnp.zeros(2)), ValueError, "normalised"),
    "not convex": (lambda: tw.FDivergence(lambda r: -((r - 1) ** 2), normal(1)), ValueError, "convex"),
    "f(1)": (lambda: tw.FDivergence(lambda r: r**2, normal(1)), ValueError, r"f\(1\) = 0"),
    "indefinite metric": (lambda: tw.Mahalanobis(jnp.diag(jnp.array([1.0, -1.0]))), ValueError, "positive definite"),
    "metric size": (
        lambda: vector_flow(bowl, jnp.ones(2), geometry=tw.Mahalanobis(jnp.eye(3))),
        ValueError,
        "2 numbers",
    ),
    "covariance": (lambda: tw.Gaussian(jnp.ones(2), -jnp.eye(2)), ValueError, "positive definite"),
    "density of a wide gaussian": (
        lambda: density_flow(tw.PorousMedium(2.0), tw.Gaussian(jnp.zeros(4), jnp.eye(4)), STEP),
        TypeError,
        "4 dimensions",
    ),
    "memory": (lambda: vector_flow(bowl, jnp.ones(10**6), num_steps=10**7), ValueError, "save_every="),
    "swapped model": (lambda: linear_fit(lambda x, p: x @ p), ValueError, r"params: f64\[3\], inputs: f64\[5,3\]"),
    "swapped fit": (lambda: linear_fit(inputs=jnp.ones(4)), ValueError, "the parameters first, then the inputs"),
    "model without return": (lambda: linear_fit(returns_nothing), ValueError, "`model.*returned None"),
    "energy without return": (lambda: vector_flow(returns_nothing, jnp.ones(2)), ValueError, "`energy`.*returned None"),
    "minimise without return": (lambda: tw.minimise(returns_nothing, jnp.ones(2)), ValueError, "returned None"),
    "penalised without return": (
        lambda: tw.minimise(returns_nothing, jnp.ones(2), plus=tw.L1(1.0)),
        ValueError,
        "returned None",
    ),
    "problem name": (lambda: tw.problems.get("rosenbrok"), ValueError, "rosenbrock"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_at_most_five_lines_that_name_it(name):
    call, kind, pattern = CASES[name]
    with pytest.raises(kind, match=pattern) as caught:
        call()
    assert len(str(caught.value).splitlines()) <= 5
    if kind is TypeError and "of" in name:
        assert isinstance(caught.value, tw.UnsupportedCombination)


WRONG_TYPES = """
import jax.numpy as jnp, thalweg as tw
line = lambda p, x: p[0] + p[1] * x
bowl, plane, step = lambda x: jnp.sum(x**2), tw.Euclidean(), tw.Explicit(0.1)
calls = [
    lambda: tw.flow(lambda x: x, jnp.ones(2), geometry=plane, scheme=step, num_steps=1),
    lambda: tw.flow(bowl, jnp.ones(2), geometry=plane, scheme=tw.Explicit, num_steps=1),
    lambda: tw.flow(bowl, jnp.ones(2), geometry="euclidean", scheme=step, num_steps=1),
    lambda: tw.Target(3.0, 2),
    lambda: tw.fit(line, jnp.ones(5), jnp.ones(5), jnp.ones(2), likelihood=tw.likelihoods.Poisson),
    lambda: tw.fit(line, jnp.ones(5), jnp.ones(5), jnp.ones(2), likelihood="poisson"),
    lambda: tw.fit(None, jnp.ones(5), jnp.ones(5), jnp.ones(2)),
    lambda: tw.minimise(lambda x: jnp.sum(x > 0), jnp.ones(2)),
    lambda: tw.minimise(lambda x: jnp.sum(x * 1j), jnp.ones(2)),
]
for call in calls:
    try:
        call()
    except (TypeError, ValueError) as error:
        print(len(str(error).splitlines()), str(error).replace("\\n", " "))
"""


def test_wrong_types_are_named_as_users_see_them():
    # In a process of its own: the tests' own type checker would speak first.
    out = subprocess.run([sys.executable, "-c", WRONG_TYPES], capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    said = ["shape (2,)", "`scheme`", "`geometry`", "`log_density`", "the class Poisson (make one", "got 'poisson'"]
    said += ["`model` must be a function", "Whole numbers", "real part"]
    assert len(lines) == len(said), out
    for line, expected in zip(lines, said, strict=True):
        assert int(line.split()[0]) <= 5
        assert expected in line


def test_why_unsupported_says_what_flow_raises():
    options = {"geometry": W2, "scheme": STEP}
    with pytest.raises(tw.UnsupportedCombination) as caught:
        tw.flow(tw.KL(normal(2)), points(), num_steps=1, **options)
    assert tw.why_unsupported(tw.KL(normal(2)), points(), **options) == str(caught.value)
    assert tw.why_unsupported(bowl, jnp.ones(2), geometry=PLANE, scheme=STEP) is None


def test_a_run_that_blows_up_keeps_its_last_good_state():
    def quartic(x):
        return jnp.sum(x**4)

    with pytest.raises(tw.FlowError, match="after step") as caught:
        tw.flow(quartic, 10 * jnp.ones(2), geometry=PLANE, scheme=tw.Explicit(0.5), num_steps=50)
    path = caught.value.path
    assert path.result == tw.RESULTS.non_finite
    assert np.all(np.isfinite(np.asarray(path.states)))
    assert int(path.final.num_steps) == len(path) - 1
    same = tw.flow(quartic, 10 * jnp.ones(2), geometry=PLANE, scheme=tw.Explicit(0.5), num_steps=50, throw=False)
    np.testing.assert_array_equal(same.states, path.states)


def test_a_singular_fisher_matrix_leaves_the_dead_parameter_at_rest():
    path = tw.fit(lambda p, x: p[0] * x + 0 * p[1], jnp.arange(4.0), 2 * jnp.arange(4.0), jnp.ones(2))
    assert path.result == tw.RESULTS.flat_point
    np.testing.assert_allclose(path.final.state.params, [2.0, 1.0], rtol=1e-12)


def test_what_needs_float64_says_so_before_it_runs():
    stiff = jnp.array([1.0, 1e6], jnp.float32)
    with pytest.raises(ValueError, match="jax_enable_x64"):
        tw.flow(
            lambda x: 0.5 * jnp.sum(stiff * x**2),
            jnp.ones(2, jnp.float32),
            geometry=PLANE,
            scheme=tw.Continuous(1.0),
            num_steps=1,
        )
