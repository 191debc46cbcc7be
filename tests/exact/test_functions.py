"""Functionals of functions: variational derivatives against sympy's Euler equations, and flows to known minimisers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy
from scipy.integrate import quad
from scipy.optimize import brentq
from sympy.calculus.euler import euler_equations

import thalweg as tw

_X, _Y = sympy.symbols("x"), sympy.Function("y")


def _first(m, x, y, slope):
    """Depends on everything, and ∂L/∂y′ is zero where y′ is."""
    return (1 + x**2 + y**2) * slope**2 / 2 + m.sqrt(1 + slope**2) + m.sin(x * y) + y**3 / 3


def _circular(m, x, y, slope):
    """The same idea, periodic in x."""
    return (2 + m.sin(2 * np.pi * x)) * slope**2 / 2 + y**2 * slope**2 + m.cos(y)


def _bending(m, x, y, slope, second):
    """With a second derivative whose coefficient depends on x and y."""
    return (1 + x**2 + y**2) * second**2 / 2 + slope**4 / 4 + x * m.sin(y)


def _steep(m, x, y, slope, second):
    """Not quadratic in y″, which stands beside y′."""
    return (1 + x * y / 2) * m.sqrt(1 + second**2) + m.cos(y) * slope**2 / 2 + second**3 * slope * x / 9


def _bending_circular(m, x, y, slope, second):
    """The same idea, periodic in x."""
    return (2 + m.sin(2 * np.pi * x)) * second**2 / 2 + slope**2 * second / 3 + m.cos(y)


_HUMP = sympy.Rational(3, 2) + sympy.cos(sympy.pi * _X) / 2 + _X**2 * (1 - _X) ** 2 * (1 + 2 * _X)
_LOW = sympy.Rational(9, 8) + _HUMP / 4
_WAVE = sympy.Rational(3, 2) + sympy.sin(2 * _X) / 2
_ROUND = sympy.Rational(3, 2) + sympy.sin(2 * sympy.pi * _X) / 4
# With y″ as well as y‴ and y′ zero at the ends, and with y″ only: the natural conditions of _bending and _steep where
# values are free, and where they are given.
_FLAT = sympy.Rational(3, 2) + 50 * (_X * (1 - _X)) ** 4 * sympy.cos(_X)
_BOW = 1 + _X / 2 + sympy.integrate(sympy.integrate((1 + _X) * sympy.sin(sympy.pi * _X) / 2, _X), _X)


def _numbers(expression):
    function = sympy.lambdify(_X, expression, "numpy")
    return lambda x: np.asarray(function(np.asarray(x)) * np.ones_like(x), float)


def _applied(integrand, expression):
    """L at a function, and its derivatives by y, y′, y″ there, as expressions of x."""
    symbols = sympy.symbols("y0 y1 y2")[: integrand.__code__.co_argcount - 2]
    lagrangian = integrand(sympy, _X, *symbols)
    values = {s: sympy.diff(expression, _X, k) for k, s in enumerate(symbols)}
    return [sympy.diff(lagrangian, s).subs(values) for s in symbols]


def _euler(integrand, expression):
    """The left side of the Euler–Lagrange equation at a function, by sympy."""
    derivatives = [_Y(_X).diff(_X, k) if k else _Y(_X) for k in range(integrand.__code__.co_argcount - 2)]
    equation = euler_equations(integrand(sympy, _X, *derivatives), _Y(_X), _X)[0].lhs
    return _numbers(equation.subs(_Y(_X), expression).doit())


def _functional(integrand):
    if integrand.__code__.co_argcount == 4:
        return tw.IntegralFunctional(lambda x, y, slope: integrand(jnp, x[0], y, slope))
    return tw.IntegralFunctional(lambda x, y, slope, second: integrand(jnp, x[0], y, slope, second))


def _variation(integrand, expression, num_cells, boundary=None, periodic=False):
    """The nodes that move, their weights and the first variation there."""
    grid = tw.Grid(0.0, 1.0, num_cells, tw.Periodic() if periodic else tw.NoFlux())
    values = _numbers(expression)(np.arange(num_cells + (not periodic)) / num_cells)
    state = tw.GridFunction.from_function(lambda x: jnp.zeros(()), grid, boundary)
    state = eqx.tree_at(lambda s: s.values, state, jnp.asarray(values)[state.free])
    cotangent = eqx.filter_jit(tw.first_variation)(_functional(integrand), state)
    return np.asarray(state.nodes)[state.free][:, 0], np.asarray(state.node_weights), cotangent.regular.values


def _pointwise_order(integrand, expression, sizes, **options):
    exact, errors = _euler(integrand, expression), []
    for num_cells in sizes:
        x, _, xi = _variation(integrand, expression, num_cells, **options)
        errors.append(np.max(np.abs(xi - exact(x))))
    return np.log(errors[0] / errors[1]) / np.log(sizes[1] / sizes[0]), errors


_ENDS = (tw.Dirichlet(float(_WAVE.subs(_X, 0))), tw.Dirichlet(lambda x: 1.5 + jnp.sin(2 * x[0]) / 2))
_HELD = tuple(tw.Dirichlet(float(_BOW.subs(_X, end))) for end in (0, 1))


@pytest.mark.parametrize(
    ("integrand", "expression", "sizes", "options"),
    [
        # All nodes that move, the ends and those next to them included. The slope of the hump turns within a twentieth
        # of the interval, which takes more cells.
        (_first, _HUMP, (80, 160), {}),
        (_first, _LOW, (40, 80), {}),
        (_first, _WAVE, (40, 80), {"boundary": _ENDS}),
        (_circular, _ROUND, (40, 80), {"periodic": True}),
        (_bending, _FLAT, (40, 80), {}),
        (_steep, _FLAT, (40, 80), {}),
        (_bending, _BOW, (40, 80), {"boundary": _HELD}),
        (_steep, _BOW, (40, 80), {"boundary": _HELD}),
        # On few cells, since y″ has only h⁻⁴·1e-16 of its digits in rounding.
        (_bending_circular, _ROUND, (20, 40), {"periodic": True}),
    ],
    ids=[
        "natural",
        "natural, less steep",
        "dirichlet",
        "periodic",
        "second derivative, natural",
        "nonlinear second derivative, natural",
        "second derivative, dirichlet",
        "nonlinear second derivative, dirichlet",
        "second derivative, periodic",
    ],
)
def test_first_variation_is_the_euler_equation_at_every_node_to_second_order(integrand, expression, sizes, options):
    order, errors = _pointwise_order(integrand, expression, sizes, **options)
    assert order >= 1.9, errors


@pytest.mark.parametrize("integrand", [_first, _bending], ids=["first derivative", "second derivative"])
def test_natural_boundary_terms_are_in_the_first_variation(integrand):
    # ⟨ξ, v⟩ = ∫ EL·v + [∂L/∂y′·v + …] = ∫ Σ ∂L/∂y⁽ᵏ⁾·v⁽ᵏ⁾ for a v that does not vanish at the ends, at a y that does
    # not satisfy the natural conditions.
    v = sympy.exp(_X) * (1 + _X)
    parts = _applied(integrand, _WAVE)
    exact = quad(_numbers(sum(part * sympy.diff(v, _X, k) for k, part in enumerate(parts))), 0, 1, epsabs=1e-12)[0]
    interior = quad(_numbers_of_product(_euler(integrand, _WAVE), _numbers(v)), 0, 1)[0]
    assert abs(exact - interior) > 1
    errors = []
    for num_cells in (20, 40):
        x, weights, xi = _variation(integrand, _WAVE, num_cells)
        errors.append(abs(np.sum(weights * np.asarray(xi) * _numbers(v)(x)) - exact))
    assert np.log2(errors[0] / errors[1]) >= 1.9, errors
    assert errors[1] < 1e-3


def _numbers_of_product(f, g):
    return lambda x: f(x) * g(x)


def test_first_variation_in_the_plane_is_the_euler_equation_at_every_node():
    # −div(∇u/√(1 + |∇u|²)) + u at u = cos πx₁·cosh x₂/10, natural where ∂u/∂n = 0 and Dirichlet elsewhere.
    x1, x2 = sympy.symbols("x1 x2")
    u = sympy.cos(sympy.pi * x1) * sympy.cosh(x2) / 10
    slopes = [sympy.diff(u, x) for x in (x1, x2)]
    root = sympy.sqrt(1 + slopes[0] ** 2 + slopes[1] ** 2)
    exact = sympy.lambdify((x1, x2), u - sum(sympy.diff(p / root, x) for p, x in zip(slopes, (x1, x2), strict=True)))
    fn = lambda x: jnp.cos(jnp.pi * x[0]) * jnp.cosh(x[1]) / 10  # noqa: E731
    energy = tw.IntegralFunctional(lambda x, u, du: jnp.sqrt(1 + jnp.sum(du**2)) + u**2 / 2)
    errors = []
    for num_cells in (24, 48):
        grid = tw.Grid((0.0, 0.0), (1.0, 1.0), (num_cells, num_cells))
        state = tw.GridFunction.from_function(fn, grid, (tw.Natural(), (tw.Natural(), tw.Dirichlet(fn))))
        xi = eqx.filter_jit(tw.first_variation)(energy, state).regular.values
        # The side x₂ = 0 is natural, and ∂u/∂x₂ = 0 there.
        nodes = np.asarray(state.nodes)[state.free]
        errors.append(np.max(np.abs(np.asarray(xi) - exact(nodes[..., 0], nodes[..., 1]))))
    assert np.log2(errors[0] / errors[1]) >= 1.9, errors


_H1, _DESCENT = tw.Sobolev(), tw.Explicit(tw.Backtracking(1.0))
_ARC = tw.IntegralFunctional(lambda x, y, slope: jnp.sqrt(1 + slope**2))


def _error(path, exact):
    state = path.final.state
    return np.max(np.abs(np.asarray(state.nodal_values) - exact(np.asarray(state.nodes))))


def _minimised(energy, state, scheme=_DESCENT, geometry=_H1, num_steps=500, tolerance=1e-9):
    path = tw.flow(
        energy,
        state,
        geometry=geometry,
        scheme=scheme,
        num_steps=num_steps,
        stop=tw.Stationary(tolerance),
        save_every=100,
    )
    assert path.result == tw.RESULTS.stopped, path
    return path


def _between(low, high, fn, num_cells=24, length=1.0):
    return tw.GridFunction.from_function(fn, tw.Grid(0.0, length, num_cells), (tw.Dirichlet(low), tw.Dirichlet(high)))


def test_shortest_curve_is_the_straight_line():
    start = _between(0.0, 1.0, lambda x: x[0] + jnp.sin(3 * jnp.pi * x[0]))
    path = _minimised(_ARC, start, scheme=tw.Proximal(1.0), geometry=tw.L2())
    # Straight lines are in the space, so what is left is the slope at which the flow stopped.
    assert _error(path, lambda x: x[:, 0]) < 1e-9
    assert tw.stationary_point(_ARC, path.final.state, geometry=tw.L2()).is_minimum


def test_least_surface_of_revolution_is_the_catenary():
    energy = tw.IntegralFunctional(lambda x, y, slope: y * jnp.sqrt(1 + slope**2))
    start = _between(np.cosh(0.5), np.cosh(0.5), lambda x: np.cosh(0.5) + 0.3 * x[0] * (1 - x[0]))
    # h⁴ is 3e-6, with a small constant: measured 8e-9.
    assert _error(_minimised(energy, start), lambda x: np.cosh(x[:, 0] - 0.5)) < 1e-7


_GRAVITY, _DEPTH = 9.81, 0.6


def _cycloid():
    """The radius, the last angle and the time of the cycloid from (0, 0) to (1, _DEPTH), and its depth at x."""
    slope = lambda a: (a - np.sin(a)) / (1 - np.cos(a)) - 1 / _DEPTH  # noqa: E731
    last = brentq(slope, 1e-3, 2 * np.pi - 1e-3, xtol=1e-15)
    radius = _DEPTH / (1 - np.cos(last))

    def depth(x):
        angle = brentq(lambda a: radius * (a - np.sin(a)) - x, -1e-9, last + 1e-9, xtol=1e-15)
        return radius * (1 - np.cos(angle))

    return last * np.sqrt(radius / _GRAVITY), np.vectorize(depth)


def test_quickest_descent_from_rest_is_the_cycloid_to_first_order_in_time():
    # The slope is infinite at the start, where y ~ x^(2/3): the time is of first order, the curve of order 2/3 there.
    energy = tw.IntegralFunctional(lambda x, y, slope: jnp.sqrt((1 + slope**2) / (2 * _GRAVITY * y)))
    best, depth = _cycloid()
    late, off = [], []
    for num_cells in (16, 32):
        path = _minimised(energy, _between(0.0, _DEPTH, lambda x: _DEPTH * x[0], num_cells), tolerance=1e-6)
        late.append(float(path.energies[-1]) - best)
        off.append(_error(path, lambda x: depth(x[:, 0])))
    # The discrete time is that of an actual curve, never less than the best: measured 1.6e-3 and 7.7e-4 of 0.567.
    assert 0 < late[1] < 1e-3
    assert np.log2(late[0] / late[1]) >= 0.9, late
    assert off[1] < 6e-3
    assert np.log2(off[0] / off[1]) >= 0.6, off


def test_minimise_reaches_the_minimiser_of_a_functional_or_says_that_there_is_none():
    energy = tw.IntegralFunctional(lambda x, y, slope: y * jnp.sqrt(1 + slope**2))
    start = _between(np.cosh(0.5), np.cosh(0.5), lambda x: np.cosh(0.5) + 0.3 * x[0] * (1 - x[0]))
    path = tw.minimise(energy, start)
    assert path.result == tw.RESULTS.minimum
    assert int(path.final.num_steps) <= 8, "Newton's method converges quadratically"
    assert _error(path, lambda x: np.cosh(x[:, 0] - 0.5)) < 1e-7
    # Beyond the first conjugate point, π, the action has no lower bound.
    action = tw.Action(lambda y: 0.5 * jnp.sum(y**2))
    beyond = tw.minimise(action, _between(0.0, 1.0, lambda x: x[0] / 4, length=4.0))
    assert beyond.result == tw.RESULTS.unbounded, beyond.message


@pytest.mark.slow
def test_quickest_descent_by_its_speed_over_the_cube_root_of_x_is_smooth_and_of_high_order():
    # With x = s³ and the speed v = √(2gy) as the unknown the cycloid is smooth at the start: v ~ s.
    energy = tw.IntegralFunctional(lambda s, v, slope: jnp.sqrt(9 * s[0] ** 4 + (v * slope / _GRAVITY) ** 2) / v)
    end = np.sqrt(2 * _GRAVITY * _DEPTH)
    best, depth = _cycloid()
    path = _minimised(energy, _between(0.0, end, lambda s: end * s[0], 32), scheme=tw.Proximal(10.0), tolerance=1e-6)
    s, v = np.asarray(path.final.state.nodes)[:, 0], np.asarray(path.final.state.nodal_values)
    assert abs(float(path.energies[-1]) - best) < 1e-8
    assert np.max(np.abs(v**2 / (2 * _GRAVITY) - depth(s**3))) < 2e-5


def test_flow_of_the_dirichlet_energy_ends_at_the_harmonic_function():
    harmonic = lambda x: jnp.exp(x[0]) * jnp.sin(x[1])  # noqa: E731
    energy = tw.IntegralFunctional(lambda x, u, du: 0.5 * jnp.sum(du**2))
    grid = tw.Grid((-0.8, -0.8), (0.8, 0.8), (12, 10))
    start = tw.GridFunction.from_function(lambda x: jnp.zeros(()), grid, tw.Dirichlet(harmonic))
    assert _error(_minimised(energy, start), lambda x: np.exp(x[..., 0]) * np.sin(x[..., 1])) < 1e-4


@pytest.mark.slow
def test_minimal_surface_is_the_one_of_scherk():
    scherk = lambda x: jnp.log(jnp.cos(x[1]) / jnp.cos(x[0]))  # noqa: E731
    energy = tw.IntegralFunctional(lambda x, u, du: jnp.sqrt(1 + jnp.sum(du**2)))
    grid = tw.Grid((-0.8, -0.8), (0.8, 0.8), (16, 16))
    start = tw.GridFunction.from_function(lambda x: jnp.zeros(()), grid, tw.Dirichlet(scherk))
    # h⁴ = 1e-4: measured 4e-5.
    assert _error(_minimised(energy, start), lambda x: np.log(np.cos(x[..., 1]) / np.cos(x[..., 0]))) < 6e-5


_OSCILLATOR = tw.Action(lambda y: 0.5 * y**2)


def _motion(time, fn=None, num_cells=24):
    exact = lambda x: jnp.sin(x[0]) / np.sin(time)  # noqa: E731
    return _between(0.0, 1.0, exact if fn is None else fn, num_cells, time)


def test_action_is_least_at_the_motion_up_to_the_conjugate_point():
    path = _minimised(_OSCILLATOR, _motion(2.0, lambda x: x[0] / 2))
    assert _error(path, lambda x: np.sin(x[:, 0]) / np.sin(2.0)) < 1e-6
    point = tw.stationary_point(_OSCILLATOR, path.final.state, geometry=tw.L2())
    # The Hessian is −d²/dx² − 1 with zeros at the ends.
    assert point.is_minimum
    np.testing.assert_allclose(point.smallest_curvature, (np.pi / 2) ** 2 - 1, rtol=1e-5)


def test_beyond_the_conjugate_point_the_motion_is_a_saddle_and_the_flow_from_elsewhere_says_that_it_failed():
    here = _motion(4.0)
    # Newton's method finds the stationary point of this quadratic energy in one step, whatever its kind.
    metric = tw.L2().at(here)
    hessian = jax.hessian(lambda z: _OSCILLATOR(eqx.tree_at(lambda s: s.values, here, z)))(here.values)
    slope = tw.first_variation(_OSCILLATOR, here).regular.values * here.node_weights
    here = metric.chart(eqx.tree_at(lambda s: s.values, here.moving(), -jnp.linalg.solve(hessian, slope)))
    point = tw.stationary_point(_OSCILLATOR, here, geometry=tw.L2())
    assert point.kind == "saddle"
    np.testing.assert_allclose(point.smallest_curvature, (np.pi / 4) ** 2 - 1, rtol=1e-5)
    options = {"geometry": _H1, "scheme": _DESCENT, "save_every": 1000, "throw": False}
    stays = tw.flow(_OSCILLATOR, here, num_steps=5, **options).final.state
    np.testing.assert_allclose(stays.values, here.values, atol=1e-12)
    leaves = tw.flow(_OSCILLATOR, _motion(4.0, lambda x: x[0] / 4), num_steps=4000, **options)
    assert leaves.result == tw.RESULTS.non_finite
    assert float(leaves.energies[-1]) < -1e100


def test_sobolev_steps_do_not_depend_on_the_cells_and_explicit_l2_steps_do():
    rates, start = {}, lambda x: x[0] + jnp.sin(jnp.pi * x[0])
    for geometry, num_cells in ((tw.Sobolev(), 16), (tw.Sobolev(), 64), (tw.L2(), 64)):
        path = tw.flow(
            _ARC,
            _between(0.0, 1.0, start, num_cells),
            geometry=geometry,
            scheme=tw.Explicit(0.5),
            num_steps=40,
            save_every=40,
            throw=False,
        )
        rates[type(geometry), num_cells] = float(path.energies[-1]) - np.sqrt(2)
    # The same step size, the same progress: both meshes are as far after as many steps.
    assert rates[tw.Sobolev, 16] < 1e-5
    np.testing.assert_allclose(rates[tw.Sobolev, 16], rates[tw.Sobolev, 64], rtol=0.01)
    # In L² that step is far beyond 0.3 h²: the curve is rough and longer than at the start.
    assert not rates[tw.L2, 64] < 2


def test_a_function_is_evaluated_between_its_nodes_to_fourth_order():
    line = tw.GridFunction.from_function(lambda x: jnp.sin(3 * x), tw.Grid(0.0, 1.0, 16))
    np.testing.assert_allclose(line(0.3217), np.sin(0.9651), atol=1e-6)
    np.testing.assert_allclose(jax.grad(line)(jnp.asarray([0.3217])), [3 * np.cos(0.9651)], atol=1e-4)
    grid = tw.Grid((0.0, 0.0), (1.0, 2.0), (16, 18), (tw.NoFlux(), tw.Periodic()))
    plane = tw.GridFunction.from_function(lambda x: x[0] ** 2 + jnp.sin(jnp.pi * x[1]), grid)
    np.testing.assert_allclose(plane(jnp.asarray([0.77, 2.4])), 0.77**2 + np.sin(0.4 * np.pi), atol=1e-5)


def test_a_path_of_functions_survives_saving(tmp_path):
    options = {"geometry": _H1, "scheme": _DESCENT, "num_steps": 2}
    path = tw.flow(_OSCILLATOR, _motion(2.0, lambda x: x[0] / 2), **options)
    path.save(tmp_path / "path.npz")
    back = tw.load(tmp_path / "path.npz")
    np.testing.assert_array_equal(back.states.nodal_values, path.states.nodal_values)
    assert path.states.nodal_values.shape == (3, 25)
    assert back.final.state.boundary[0][1].value == 1.0


_LINE, _PLANE = tw.Grid(0.0, 1.0, 8), tw.Grid((0.0, 0.0), (1.0, 1.0), (8, 8))
_START = tw.GridFunction(jnp.ones(9), _LINE)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tw.GridFunction(jnp.ones(8), _LINE), r"must have shape \(9,\)"),
        (lambda: tw.GridFunction(jnp.ones(9), _LINE, tw.Dirichlet(0.0)), r"must have shape \(7,\)"),
        (lambda: tw.GridFunction(jnp.ones(9).at[2].set(jnp.nan), _LINE), "must be finite"),
        (lambda: tw.GridFunction(jnp.ones((8, 8, 8)), tw.Grid((0.0,) * 3, (1.0,) * 3, (8,) * 3)), "one or two"),
        (lambda: tw.GridFunction(jnp.ones(5), tw.Grid(0.0, 1.0, 4)), "at least 8 cells"),
        (lambda: tw.Dirichlet(jnp.inf), "must be finite"),
        (lambda: tw.GridFunction(jnp.ones(7), _LINE, tw.Dirichlet(lambda x: 1 / x[0])), "must be finite"),
        (lambda: tw.GridFunction(jnp.ones((7, 7)), _PLANE, tw.Dirichlet(jnp.ones(4))), r"number or have shape \(9,\)"),
        (lambda: tw.GridFunction(jnp.ones(8), _LINE, tw.Periodic()), "not periodic"),
        (lambda: tw.GridFunction(jnp.ones(9), _LINE, "natural"), "tw.Natural"),
        (lambda: tw.GridFunction.from_function(lambda x: jnp.ones(2), _LINE), "must return a number"),
        (lambda: tw.IntegralFunctional(lambda x, y: y), "takes 2 argument"),
        (lambda: tw.Sobolev(order=3), "must be 1 or 2"),
        (lambda: tw.Sobolev(length=0.0), "positive finite"),
        (lambda: tw.Sobolev(order=2).at(tw.GridFunction(jnp.ones((9, 9)), _PLANE)), "one variable"),
        (lambda: tw.Sobolev().at(jnp.ones(3)), "GridFunction"),
        (lambda: tw.Euclidean().at(_START), "vectors and pytrees"),
    ],
    ids=lambda value: None if callable(value) else value.replace(" ", "-"),
)
def test_bad_functions_are_refused(make, words):
    with pytest.raises((ValueError, tw.UnsupportedCombination), match=words) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("energy", "state", "words"),
    [
        (tw.IntegralFunctional(lambda x, y, slope: jnp.stack([y, slope])), _START, "must return a number"),
        (tw.IntegralFunctional(lambda x, y, slope: 1 / (y - 1)), _START, "must be finite along"),
        (2.0 * tw.Action(lambda y: jnp.log(y - 1)), _START, "must be finite along"),
        (_ARC, jnp.ones(9), "needs a `tw.GridFunction`"),
        (tw.Entropy(), _START, "cannot be evaluated"),
    ],
    ids=["not a number", "not finite", "action not finite", "a vector", "an energy of densities"],
)
def test_bad_integrands_are_refused_before_the_flow(energy, state, words):
    geometry = tw.L2() if isinstance(state, tw.GridFunction) else tw.Euclidean()
    why = tw.why_unsupported(energy, state, geometry=geometry, scheme=tw.Explicit(0.1))
    assert why is not None
    assert words in why
    assert len(why.splitlines()) <= 5


def test_functions_have_pictures_and_labelled_axes():
    plotting = pytest.importorskip("thalweg.plotting", reason="pictures need the extra thalweg[plot]")
    path = tw.flow(_OSCILLATOR, _motion(2.0, lambda x: x[0] / 2), geometry=_H1, scheme=_DESCENT, num_steps=2)
    figure = path.plot(reference_state=lambda x: jnp.sin(x[0]) / np.sin(2.0))
    drawn = [line.get_ydata() for ax in figure.axes for line in ax.lines]
    # The start and the end, with their ends on the boundary.
    for save in (0, -1):
        assert any(np.array_equal(y, path.states.nodal_values[save]) for y in drawn)
    plane = tw.GridFunction.from_function(lambda x: x[0] * x[1], _PLANE, tw.Dirichlet(lambda x: x[0] * x[1]))
    ax = plotting.plot_state(plane, reference_state=lambda x: x[0] + x[1])
    np.testing.assert_array_equal(ax.collections[0].get_array().reshape(9, 9), plane.nodal_values.T)
    assert ax.get_xlabel()
    labelled = path.to_xarray()["function"]
    np.testing.assert_array_equal(labelled, path.states.nodal_values)
    np.testing.assert_allclose(labelled.coords["x"], np.linspace(0, 2, 25))
