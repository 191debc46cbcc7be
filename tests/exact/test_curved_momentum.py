"""Inertia where the metric changes with the point: closed forms in curved coordinates, and an accurate ODE solution."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import j1

import thalweg as tw
from thalweg.energies import as_energy

GAMMA = tw.ConstantDamping(1.5)


@eqx.filter_jit
def travel(energy, geometry, state, damping, step_size, num_steps, room=400):
    """The last state, and the total energy and the kinetic energy after each step; one program for all step sizes."""
    energy, scheme = as_energy(energy), tw.Momentum(step_size, damping)
    memory = scheme.init(energy, geometry, state, None)
    free, rest = eqx.partition(state, eqx.is_inexact_array)

    def one(i, carry):
        free, memory, totals, kinetics, fine = carry
        state, memory, info = scheme.step(energy, geometry, eqx.combine(free, rest), memory, None)
        kinetic = info.stats["kinetic"]
        totals, kinetics = totals.at[i].set(energy(state) + kinetic), kinetics.at[i].set(kinetic)
        fine = fine & (info.result == tw.RESULTS.successful)
        return eqx.filter(state, eqx.is_inexact_array), memory, totals, kinetics, fine

    nothing = jnp.full(room, jnp.nan)
    carry = (free, memory, nothing, nothing, jnp.asarray(True))
    free, _, totals, kinetics, fine = jax.lax.fori_loop(0, num_steps, one, carry)
    return eqx.combine(free, rest), totals, kinetics, fine


def errors_of(energy, geometry, start, damping, final_time, counts, error):
    """The errors at the end for several numbers of steps, and what fell in the last run."""
    errors = []
    for count in counts:
        end, totals, kinetics, fine = travel(energy, geometry, start, damping, final_time / count, jnp.asarray(count))
        assert fine
        errors.append(float(error(end)))
    return np.asarray(errors), np.asarray(totals[:count]), np.asarray(kinetics[:count])


def orders(errors):
    return np.log2(errors[:-1] / errors[1:])


def straighten(x):
    """Curved coordinates of a flat space: y = φ(x), each entry bent and mixed with the next."""
    bent = x + 0.3 * jnp.sin(x)
    return bent + 0.2 * jnp.roll(bent, 1) ** 2


def pulled_back(x):
    jacobian = jax.jacfwd(straighten)(x)
    return jacobian.T @ jacobian


def test_nesterovs_equation_in_curved_coordinates_is_the_one_in_straight_coordinates():
    # G = JᵀJ is flat: in y = φ(x) the path is Bessel's, y(t) = y₀ · 2J₁(√λt)/(√λt).
    curvatures, start, time = jnp.asarray([0.5, 1.0, 2.0]), jnp.asarray([0.6, -0.5, 0.4]), 3.0
    energy = lambda x: 0.5 * jnp.sum(curvatures * straighten(x) ** 2)  # noqa: E731
    swing = np.sqrt(np.asarray(curvatures)) * time
    exact = np.asarray(straighten(start)) * 2 * j1(swing) / swing
    geometry = tw.Riemannian(pulled_back)
    found, totals, _ = errors_of(
        energy,
        geometry,
        start,
        tw.NesterovDamping(),
        time,
        (40, 80, 160),
        lambda x: np.max(np.abs(straighten(x) - exact)),
    )
    np.testing.assert_allclose(orders(found), 2, atol=0.1)
    assert found[-1] < 2e-4
    assert np.all(np.diff(totals) < 0)


def test_the_heavy_ball_in_a_hessian_metric_is_the_one_in_its_straight_coordinates():
    # h = −Σ log x has G = diag(1/x²), straight in log x: ÿ + γẏ + λy = 0 there. The path stays positive.
    start, rate, time = jnp.asarray([3.0, 0.2]), 4.0, 2.0
    energy = lambda x: 0.5 * rate * jnp.sum(jnp.log(x) ** 2)  # noqa: E731
    turn = np.sqrt(rate - 1.5**2 / 4)
    swing = np.exp(-0.75 * time) * (np.cos(turn * time) + 0.75 / turn * np.sin(turn * time))
    error = lambda x: np.max(np.abs(np.log(x) - np.log(start) * swing))  # noqa: E731
    found, totals, _ = errors_of(energy, tw.Hessian(tw.BurgEntropy()), start, GAMMA, time, (40, 80, 160), error)
    np.testing.assert_allclose(orders(found), 2, atol=0.15)
    assert found[-1] < 5e-4
    assert np.all(np.diff(totals) < 0)


def test_the_heavy_ball_in_the_hyperbolic_plane_of_the_normal_family_is_that_of_an_accurate_solver():
    # G = diag(e^{−2s}, 2) in mean and log scale has curvature −1/2: no coordinates are straight.
    family = tw.likelihoods.NormalMeanScale()
    start = tw.Parametric({"mean": jnp.asarray(1.0), "log_scale": jnp.asarray(0.3)}, family)
    goal = {"mean": jnp.asarray(-0.5), "log_scale": jnp.asarray(-0.2)}
    energy = lambda state: family.kl(state.params, goal)  # noqa: E731
    named = lambda z: {"mean": z[0], "log_scale": z[1]}  # noqa: E731

    def motion(time, point, args):
        z, p = point
        kinetic = lambda z: 0.5 * (jnp.exp(2 * z[1]) * p[0] ** 2 + 0.5 * p[1] ** 2)  # noqa: E731
        force = -jax.grad(lambda z: family.kl(named(z), goal) + kinetic(z))(z)
        return jnp.stack([jnp.exp(2 * z[1]) * p[0], 0.5 * p[1]]), force - 1.5 * p

    first = (jnp.asarray([1.0, 0.3]), jnp.zeros(2))
    controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(motion), diffrax.Dopri5(), 0.0, 2.0, 1e-3, first, stepsize_controller=controller
    )
    there = solution.ys[0][-1]
    error = lambda s: jnp.hypot(s.params["mean"] - there[0], s.params["log_scale"] - there[1])  # noqa: E731
    found, totals, kinetics = errors_of(energy, tw.FisherRao(), start, GAMMA, 2.0, (40, 80, 160), error)
    np.testing.assert_allclose(orders(found), 2, atol=0.1)
    assert found[-1] < 2e-4
    # dH/dt = −γ‖π‖²_* = −2γ·kinetic, by the trapezium over a step.
    lost = -np.diff(totals)
    assert np.all(lost > 0)
    np.testing.assert_allclose(lost, 1.5 * (kinetics[1:] + kinetics[:-1]) * 2.0 / 160, atol=2e-5)


def test_a_gaussian_by_its_covariance_is_the_same_hyperbolic_plane_as_by_its_log_scale():
    # Two coordinates, two discretisations of one motion: they differ by the square of the step.
    family, target = tw.likelihoods.NormalMeanScale(), {"mean": jnp.asarray(-0.5), "log_scale": jnp.asarray(-0.2)}
    member = tw.Parametric({"mean": jnp.asarray(1.0), "log_scale": jnp.asarray(0.3)}, family)
    gaussian = tw.Gaussian(jnp.asarray([1.0]), jnp.exp(jnp.asarray([[0.6]])))
    written = lambda g: {"mean": g.mean[0], "log_scale": 0.5 * jnp.log(g.covariance[0, 0])}  # noqa: E731
    of_gaussian = tw.Functional(lambda g: family.kl(written(g), target))
    gaps = []
    for count in (20, 40):
        options = (tw.FisherRao(), GAMMA, 1.0 / count, jnp.asarray(count))
        one, totals, _, fine = travel(of_gaussian, options[0], gaussian, *options[1:])
        other, *_ = travel(lambda s: family.kl(s.params, target), options[0], member, *options[1:])
        assert fine
        assert np.all(np.diff(totals[:count]) < 0)
        gaps.append(float(jnp.abs(written(one)["log_scale"] - other.params["log_scale"])))
    np.testing.assert_allclose(np.log2(gaps[0] / gaps[1]), 2, atol=0.1)
    assert gaps[1] < 2e-3


def test_a_gaussian_with_inertia_in_a_harmonic_potential_is_a_cloud_of_heavy_balls():
    # Every particle is one: x(t) = s(t) x₀, so that m = s m₀ and Σ = s² Σ₀. Geodesics are exact, as far as s > 0.
    start = tw.Gaussian(jnp.asarray([1.0, -0.5]), jnp.asarray([[0.9, 0.3], [0.3, 0.6]]))
    energy, time, rate = tw.PotentialEnergy(lambda x: 0.5 * jnp.sum(x**2)), 1.5, 1.0 - 1.5**2 / 4
    swing = np.exp(-0.75 * time) * (np.cos(rate**0.5 * time) + 0.75 / rate**0.5 * np.sin(rate**0.5 * time))
    error = lambda g: np.max(np.abs(g.covariance - swing**2 * start.covariance))  # noqa: E731
    found, totals, _ = errors_of(energy, tw.Wasserstein(), start, GAMMA, time, (20, 40, 80), error)
    np.testing.assert_allclose(orders(found), 2, atol=0.1)
    assert found[-1] < 1e-4
    assert np.all(np.diff(totals) < 0)
    # Nothing holds the particles apart: where they meet, the motion ends by name.
    path = tw.flow(
        energy,
        start,
        geometry=tw.Wasserstein(),
        scheme=tw.Momentum(0.1, tw.ConstantDamping(0.1)),
        num_steps=40,
        throw=False,
    )
    assert path.result == tw.RESULTS.inner_solver_failed
    assert np.all(np.linalg.eigvalsh(np.asarray(path.final.state.covariance)) > 0)


def test_a_density_with_inertia_goes_along_great_circles_of_its_root():
    # In ψ = √q on its sphere: ψ̈ + γψ̇ = −(¼∂F/∂ψ along the sphere) − |ψ̇|²ψ/|ψ|².
    grid = tw.Grid(0.0, 1.0, 4)
    start = tw.GridDensity.normalised(jnp.asarray([1.0, 2.0, 1.5, 0.5]), grid)
    goal, volume = jnp.asarray([0.4, 0.8, 1.6, 1.2]), grid.cell_volume
    kl = lambda q: jnp.sum(q * jnp.log(q / goal)) * volume  # noqa: E731

    def motion(time, point, args):
        psi, speed = point
        # ‖v‖² is four times the square of ψ̇.
        slope = jax.grad(lambda psi: kl(psi**2))(psi) / volume / 4
        along = slope - jnp.sum(slope * psi) * volume * psi
        return speed, -jnp.sum(speed**2) * volume * psi - along - 1.5 * speed

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(motion),
        diffrax.Dopri5(),
        0.0,
        1.5,
        1e-3,
        (jnp.sqrt(start.values), jnp.zeros(4)),
        stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-11),
    )
    there = solution.ys[0][-1] ** 2
    energy = tw.Functional(lambda state: kl(state.values))
    error = lambda state: np.max(np.abs(state.values - there))  # noqa: E731
    found, totals, _ = errors_of(energy, tw.FisherRao(), start, GAMMA, 1.5, (20, 40, 80), error)
    np.testing.assert_allclose(orders(found), 2, atol=0.1)
    assert found[-1] < 1e-4
    assert np.all(np.diff(totals) < 0)


def test_a_tensor_that_does_not_change_makes_the_same_path_as_its_norm():
    matrix = jnp.asarray([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]])
    start, energy = jnp.asarray([1.0, -0.6, 0.3]), lambda x: jnp.sum(jnp.log(jnp.cosh(2 * x)))
    ends = [
        travel(energy, geometry, start, tw.NesterovDamping(), 0.1, jnp.asarray(30))[0]
        for geometry in (tw.Riemannian(lambda x: matrix + 0 * x[0]), tw.Mahalanobis(matrix))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-12)


def curve(params, inputs):
    return params["a"] * jnp.exp(-params["b"] * inputs) + params["c"] * inputs**2


@pytest.mark.parametrize("form", [tw.KernelFisher(), tw.MatrixFreeFisher(1e-13)], ids=["kernel", "matrix-free"])
def test_every_form_of_a_damped_fisher_matrix_makes_the_same_motion(form):
    # Two observations and three parameters: singular but for the damping.
    params = {"a": jnp.asarray(1.3), "b": jnp.asarray(0.4), "c": jnp.asarray(0.2)}
    family = tw.likelihoods.Regression(curve, jnp.asarray([0.5, 1.5]), tw.likelihoods.Normal(0.5))
    state, energy = tw.Parametric(params, family), tw.HalfDeviance(jnp.asarray([0.3, 0.6]))
    geometries = [tw.FisherRao(0.3, each) for each in (form, tw.DenseFisher())]
    ends = [travel(energy, geometry, state, GAMMA, 0.05, jnp.asarray(20)) for geometry in geometries]
    for end, totals, _, fine in ends:
        assert fine
        assert np.all(np.diff(totals[:20]) < 0)
        for name in params:
            np.testing.assert_allclose(end.params[name], ends[1][0].params[name], rtol=1e-9)
    why = tw.why_unsupported(energy, state, geometry=tw.FisherRao(), scheme=tw.Momentum(0.05))
    assert why is not None
    assert "more parameters than observed numbers" in why
    assert len(why.splitlines()) <= 5


def test_a_step_too_long_for_its_geodesic_is_named():
    energy, geometry = (lambda x: jnp.sum(x**2)), tw.Riemannian(pulled_back)
    path = tw.flow(
        energy, jnp.asarray([3.0, -2.0, 1.0]), geometry=geometry, scheme=tw.Momentum(4.0), num_steps=5, throw=False
    )
    assert path.result == tw.RESULTS.inner_solver_failed
    assert "smaller step size" in path.message


def test_functions_with_inertia_are_a_damped_string():
    # ∂ₜₜy + γ∂ₜy = ∂ₓₓy between fixed ends: each mode of the Dirichlet energy is a heavy ball.
    grid, gamma, alpha, count = tw.Grid(0.0, 1.0, 16), 2.0, 0.01, 50
    ends = (tw.Dirichlet(0.0), tw.Dirichlet(0.0))
    start = tw.GridFunction.from_function(lambda x: jnp.sin(jnp.pi * x), grid, ends)
    energy = tw.IntegralFunctional(lambda x, y, slope: 0.5 * slope**2)
    end, totals, _, fine = travel(energy, tw.L2(), start, tw.ConstantDamping(gamma), alpha, jnp.asarray(count))
    assert fine
    assert np.all(np.diff(totals[:count]) < 0)
    turn = np.sqrt(np.pi**2 - gamma**2 / 4)
    time = alpha * count
    swing = np.exp(-gamma * time / 2) * (np.cos(turn * time) + gamma / (2 * turn) * np.sin(turn * time))
    # To h⁴ of the grid and α²ω² of the steps.
    np.testing.assert_allclose(end.values, swing * start.values, atol=2e-3)
