"""Accelerated descent against closed forms: the heavy ball, Nesterov's equation, and what falls along them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import j1

import thalweg as tw
from thalweg import _loop
from thalweg.energies import as_energy

# Condition number 1e4; the smallest curvature sets the rate, √μ = 0.1.
CURVATURES = jnp.asarray([0.01, 1.0, 100.0])
START = jnp.asarray([1.0, -1.0, 0.5])


def quadratic(x):
    return 0.5 * jnp.sum(CURVATURES * x**2)


def valley(x):
    """Convex, neither quadratic nor strongly convex at its minimum."""
    return jnp.sum(jnp.log(jnp.cosh(3 * x))) + 0.25 * jnp.sum((x[1:] - x[:-1]) ** 4)


def run(scheme, final_time, energy=quadratic, start=START, geometry=None, **options):
    geometry = tw.Euclidean() if geometry is None else geometry
    return tw.flow(energy, start, geometry=geometry, scheme=scheme, final_time=final_time, **options)


def heavy_ball(time, gamma, curvature, start):
    """ẍ + γẋ + λx = 0 from rest, by the roots −γ/2 ± √(γ²/4 − λ)."""
    root = np.sqrt(complex(gamma**2 / 4 - curvature))
    if abs(root) < 1e-12:
        return start * np.exp(-gamma * time / 2) * (1 + gamma * time / 2)
    swing = np.cosh(root * time) + gamma / (2 * root) * np.sinh(root * time)
    return start * np.exp(-gamma * time / 2) * swing.real


def test_the_heavy_ball_is_the_exact_one_to_second_order():
    # α√L is 0.25, 0.125 and 0.0625; the error is that of the phase of the fastest part, α²ω³t/24.
    damping, time = tw.ConstantDamping.critical(0.01), 2.0
    exact = np.asarray([heavy_ball(time, 0.2, float(c), float(x)) for c, x in zip(CURVATURES, START, strict=True)])
    errors = [
        np.max(np.abs(np.asarray(run(tw.Momentum(time / n, damping), time, save_every=n).final.state) - exact))
        for n in (80, 160, 320)
    ]
    orders = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
    # The next term shows as (α√L)²/4 at the coarsest.
    np.testing.assert_allclose(orders, 2, atol=0.06)
    assert errors[-1] < 3e-3


def test_critical_damping_falls_like_the_root_of_the_curvature_where_gradient_flow_falls_like_the_curvature():
    # After t = 100: (1 + √μt) e^{−√μt} = 11 e^{−10} = 5e-4, against e^{−μt} = 0.37.
    path = run(tw.Momentum(0.05, tw.ConstantDamping.critical(0.01)), 100.0, save_every=200)
    envelope = (1 + 0.1 * path.times) * jnp.exp(-0.1 * path.times)
    np.testing.assert_allclose(path.states[:, 0], envelope, rtol=2e-4)
    # The stiff parts swing inside e^{−√μt}, up to α²L/8 of their start.
    assert np.all(np.abs(path.states[:, 1:]) <= 1.04 * np.exp(-0.1 * np.asarray(path.times))[:, None])
    slow = run(tw.Explicit(0.01), 100.0, save_every=10_000)
    np.testing.assert_allclose(slow.final.state[0], np.exp(-1.0), rtol=1e-4)


def test_nesterov_falls_like_one_over_time_squared_and_gradient_flow_like_one_over_time():
    # Curvatures down to 1e-8, weighted so that both rates are reached but for a tenth: F ~ t^{−1.1} and t^{−2.2}.
    rates = jnp.geomspace(1e-8, 1.0, 80)
    start = rates**0.05
    energy = lambda x: 0.5 * jnp.sum(rates * x**2)  # noqa: E731
    size = float(jnp.sum(start**2))
    fast = run(tw.Momentum(0.5), 400.0, energy, start, save_every=20)
    slow = run(tw.Explicit(0.5), 400.0, energy, start, save_every=20)
    times = np.asarray(fast.times)[1:]

    def slope(path):
        late = times >= 40
        return np.polyfit(np.log(times[late]), np.log(np.asarray(path.energies)[1:][late]), 1)[0]

    assert -2.35 < slope(fast) < -2.05
    assert -1.2 < slope(slow) < -1.0
    # The bounds of the theory, along the whole path.
    assert np.all(np.asarray(fast.energies)[1:] <= 2 * size / times**2)
    assert np.all(np.asarray(slow.energies)[1:] <= size / (2 * times))
    # And the path is Bessel's: x(t) = x₀ · 2J₁(√λt)/(√λt). Its phase is off by α²λ^{3/2}t/24 < 1 only where λt² ≫ 1,
    # so the energy is compared at t = 10.
    argument = np.sqrt(np.asarray(rates)) * times[0]
    exact = 0.5 * np.sum(np.asarray(rates) * (np.asarray(start) * 2 * j1(argument) / argument) ** 2)
    np.testing.assert_allclose(fast.energies[1], exact, rtol=0.02)


def test_nesterovs_own_lyapunov_function_falls():
    # E(t) = t²(F − F*) + 2|x + tẋ/2 − x*|²; in discrete time it may rise by O(α³t) a step.
    scheme, energy = tw.Momentum(0.02), as_energy(valley)
    start = jnp.asarray([1.0, -0.6, 0.3])
    memory = scheme.init(energy, tw.Euclidean(), start, None)

    def step(carry, _):
        x, memory = carry
        x, memory, _ = scheme.step(energy, tw.Euclidean(), x, memory, None)
        time = memory.age
        total = time**2 * energy(x) + 2 * jnp.sum((x - time / 2 * memory.momentum) ** 2)
        return (x, memory), total

    _, totals = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=500))((start, memory))
    totals = np.concatenate([[2 * float(jnp.sum(start**2))], np.asarray(totals)])
    assert np.max(np.diff(totals)) < 1e-4 * totals[0]
    assert totals[-1] < 0.8 * totals[0]


def test_the_total_energy_of_a_quadratic_falls_at_every_step_within_the_stated_bound():
    # 16 starts for each friction, from weak to strong, at the largest stated step min(2.5γ/L, 1.4/√L).
    starts = jax.random.normal(jax.random.key(0), (16, 3))
    gammas = jnp.asarray([0.1, 1.0, 3.0, 10.0, 100.0])

    def totals(gamma, start, factor):
        scheme = tw.Momentum(factor * jnp.minimum(2.5 * gamma / 100, 0.14), tw.ConstantDamping(gamma))
        path = tw.rollout(quadratic, start, geometry=tw.Euclidean(), scheme=scheme, num_steps=60)
        return path.energies + path.measurements["kinetic"]

    over = jax.jit(jax.vmap(jax.vmap(totals, in_axes=(None, 0, None)), in_axes=(0, None, None)))
    rises = np.diff(over(gammas, starts, 1.0), axis=-1)
    assert np.max(rises) < 1e-12
    # The bound is not idle: with steps a fifth longer some rise.
    assert np.max(np.diff(over(gammas, starts, 1.2), axis=-1)) > 1e-3


@pytest.mark.parametrize(
    ("geometry", "is_smooth"),
    [(tw.PNorm(1.5), True), (tw.MaxNorm(), False)],
    ids=["p norm", "max norm"],
)
def test_in_other_norms_the_total_energy_falls_at_the_rate_of_the_friction(geometry, is_smooth):
    start, gamma = jnp.asarray([1.0, -0.6, 0.3]), 1.5
    paths = [run(tw.Momentum(1.0 / n, tw.ConstantDamping(gamma)), 1.0, valley, start, geometry) for n in (50, 100, 200)]
    for path in paths:
        assert float(path.times[-1]) == 1.0
        assert path.energy_balance().relative_error < 2e-3
    path = paths[-1]
    kinetic = path.measurements["kinetic"]
    total = path.energies + kinetic
    # dH/dt = −γ‖π‖_*² = −2γ·kinetic, by the trapezium over a step.
    friction = gamma * (kinetic[1:] + kinetic[:-1]) / 200
    lost = -jnp.diff(total)
    if is_smooth:
        assert float(jnp.min(lost)) > 0
        np.testing.assert_allclose(lost, friction, atol=5e-5)
        errors = [np.max(np.abs(a.final.state - b.final.state)) for a, b in zip(paths, paths[1:], strict=False)]
        # The dual of p = 1.5 is p' = 3, whose square has one derivative less at zero.
        assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.15, errors
    else:
        # The velocity jumps where a component of π changes its sign; in all the law holds to first order.
        np.testing.assert_allclose(total[0] - total[-1], jnp.sum(friction), rtol=0.05)


def test_in_a_norm_with_corners_the_total_energy_is_right_to_first_order():
    # The velocity jumps where a component of π changes its sign, a step sooner or later: no order but the first, and
    # that not from one halving to the next.
    start, energy = jnp.asarray([1.0, -0.6, 0.3]), as_energy(valley)

    @eqx.filter_jit
    def total(step_size, num_steps):
        scheme, geometry = tw.Momentum(step_size, tw.ConstantDamping(1.5)), tw.MaxNorm()

        def one(_, carry):
            x, memory, _ = carry
            x, memory, info = scheme.step(energy, geometry, x, memory, None)
            return x, memory, energy(x) + info.stats["kinetic"]

        begin = (start, scheme.init(energy, geometry, start, None), energy(start))
        return jax.lax.fori_loop(0, num_steps, one, begin)[2]

    counts = np.asarray([50, 100, 200, 400, 800, 1600, 3200])
    exact = total(3.0 / 200_000, jnp.asarray(200_000))
    errors = [abs(float(total(3.0 / n, jnp.asarray(n)) - exact)) for n in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > 0.8
    assert errors[-1] < 1e-3


def test_particles_with_inertia_are_vectors_with_inertia():
    points = jnp.asarray([[1.0, 0.2], [-0.5, 0.7], [0.3, -1.0]])
    potential = lambda x: jnp.sum(jnp.log(jnp.cosh(2 * x)))  # noqa: E731
    scheme = tw.Momentum(0.05, tw.ConstantDamping(1.0))
    weights = jnp.log(jnp.asarray([0.2, 0.5, 0.3]))
    cloud = run(scheme, 1.0, tw.PotentialEnergy(potential), tw.Particles(points, weights), tw.Wasserstein())
    vectors = run(scheme, 1.0, lambda x: jnp.sum(jax.vmap(potential)(x)), points)
    np.testing.assert_allclose(cloud.final.state.positions, vectors.final.state, rtol=1e-12)
    # The kinetic energy is that of the masses.
    speeds = jnp.sum(cloud.final.memory.momentum.positions**2, axis=1)
    np.testing.assert_allclose(cloud.measurements["kinetic"][-1], jnp.exp(weights) @ speeds / 2, rtol=1e-12)


@pytest.mark.parametrize("restart", [tw.GradientRestart(), tw.SpeedRestart()], ids=["gradient", "speed"])
def test_a_restart_makes_nesterov_linear_on_a_strongly_convex_function(restart):
    plain = run(tw.Momentum(0.1), 300.0, save_every=300)
    again = run(tw.Momentum(0.1, restart=restart), 300.0)
    count = np.asarray(again.measurements["restarts"])
    assert count[-1] >= 3
    # Nesterov's own rate is t^{−3} here; restarted it is e^{−ct} with c near √μ.
    assert float(again.energies[-1]) < 1e-3 * float(plain.energies[-1])
    total = np.asarray(again.energies + again.measurements["kinetic"])
    restarted = np.flatnonzero(np.diff(count))
    # Motion is dropped, never added.
    assert np.all(np.diff(total)[restarted] < 0)
    assert np.all(np.asarray(again.measurements["kinetic"])[restarted + 1] == 0)


def test_momentum_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(_loop, "next_chunk", lambda steps, elapsed: 3)
    energy = tw.MiniBatch(lambda x, z: jnp.sum((x - z) ** 4), jnp.linspace(-1.0, 1.0, 7), batch_size=2)
    options = {"geometry": tw.PNorm(1.5), "scheme": tw.Momentum(0.1, restart=tw.SpeedRestart(2)), "save_every": 2}
    options["key"] = jax.random.key(5)
    whole = tw.flow(energy, START, num_steps=9, **options)
    store = tw.Checkpoint(tmp_path, every_seconds=0.0)
    tw.flow(energy, START, num_steps=4, checkpoint=store, **options)
    resumed = tw.flow(energy, START, num_steps=9, checkpoint=store, **options)
    for a, b in zip(jax.tree.leaves(resumed.final), jax.tree.leaves(whole.final), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(resumed.states, whole.states)


def test_a_last_step_is_cut_to_the_final_time_and_keeps_the_order():
    # 0.3 is no multiple of 0.07: four steps and a cut one.
    path = run(tw.Momentum(0.07), 0.3, lambda x: 0.5 * jnp.sum(x**2))
    assert float(path.times[-1]) == 0.3
    assert len(path) == 6
    # 2J₁(t)/t, to α²t²/100.
    np.testing.assert_allclose(path.final.state, START * 2 * j1(0.3) / 0.3, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: tw.ConstantDamping(-1.0), "`gamma` of `ConstantDamping` must be a positive"),
        (lambda: tw.ConstantDamping.critical(0.0), "`curvature` of `ConstantDamping.critical` must be"),
        (lambda: tw.NesterovDamping(0.0), "`order` of `NesterovDamping` must be a positive"),
        (lambda: tw.Momentum(-0.1), "`step_size` of `Momentum` must be a positive"),
        (lambda: tw.SpeedRestart(0), "`min_steps` of `SpeedRestart` must be a positive"),
    ],
    ids=["gamma", "curvature", "order", "step size", "steps"],
)
def test_a_wrong_number_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


GRID = tw.Grid(-1.0, 1.0, 4)


@pytest.mark.parametrize(
    ("energy", "state", "geometry", "instead"),
    [
        (tw.Entropy(), tw.GridDensity.normalised(jnp.ones(4), GRID), tw.Wasserstein(), "`tw.Riemannian`"),
        (quadratic, jnp.asarray([0.5, 0.3, 0.2]), tw.Bregman(tw.SimplexEntropy()), "`scheme=tw.MirrorMomentum"),
    ],
    ids=["no geodesics", "a mirror"],
)
def test_where_there_are_no_geodesics_momentum_says_what_to_do(energy, state, geometry, instead):
    why = tw.why_unsupported(energy, state, geometry=geometry, scheme=tw.Momentum(0.1))
    assert why is not None
    assert instead in why
    assert len(why.splitlines()) <= 5


def test_mirror_momentum_in_the_euclidean_norm_is_nesterovs_equation_of_one_order_more():
    start = jnp.asarray([1.0, -0.6, 0.3])
    one = run(tw.MirrorMomentum(0.01), 2.0, valley, start, save_every=200)
    other = run(tw.Momentum(0.01, tw.NesterovDamping(3.0)), 2.0, valley, start, save_every=200)
    # Two methods of second order for one equation: off by about α²L = 1e-3.
    np.testing.assert_allclose(one.final.state, other.final.state, atol=1e-3)
    half = run(tw.MirrorMomentum(0.005), 2.0, valley, start, save_every=400)
    quarter = run(tw.MirrorMomentum(0.0025), 2.0, valley, start, save_every=800)
    errors = [np.max(np.abs(a.final.state - b.final.state)) for a, b in [(one, half), (half, quarter)]]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1, errors


def test_mirror_momentum_on_the_simplex_keeps_its_bound_and_its_lyapunov_function_falls():
    # The minimum lies on an edge, where the Bregman divergence from the start is finite.
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5)))
    best, start = jnp.asarray([0.7, 0.3, 0.0, 0.0, 0.0]), jnp.full(5, 0.2)
    energy = as_energy(lambda x: 0.5 * jnp.sum((matrix @ (x - best)) ** 2))
    geometry, scheme = tw.Bregman(tw.SimplexEntropy()), tw.MirrorMomentum(0.1)
    divergence = lambda z: jnp.sum(best[:2] * jnp.log(best[:2] / z[:2]))  # noqa: E731

    def step(carry, _):
        x, memory = carry
        x, memory, info = scheme.step(energy, geometry, x, memory, None)
        total = memory.age**2 / 2 * energy(x) + 2 * divergence(memory.leader)
        return (x, memory), (x, total, energy(x), info.dissipated)

    begin = (start, scheme.init(energy, geometry, start, None))
    _, (points, totals, energies, dissipated) = jax.jit(lambda b: jax.lax.scan(step, b, None, length=1000))(begin)
    times, bound = 0.1 * np.arange(1, 1001), float(divergence(start))
    assert np.all(np.asarray(energies) <= 4 * bound / times**2)
    # In discrete time it may rise by O(α³t) a step; here by less than a thousandth of itself.
    assert np.max(np.diff(np.concatenate([[2 * bound], totals]))) < 1e-3 * 2 * bound
    assert float(totals[-1]) < 0.5 * 2 * bound
    assert float(jnp.min(points)) > 0
    np.testing.assert_allclose(jnp.sum(points, axis=1), 1, rtol=1e-12)
    # The energy itself rises at times, and the balance says by how much (exactly, for a quadratic).
    assert float(jnp.min(dissipated)) < 0
    np.testing.assert_allclose(energy(start) - energies[-1], jnp.sum(dissipated), rtol=1e-10)


def test_mirror_momentum_is_refused_where_there_is_no_mirror():
    why = tw.why_unsupported(quadratic, START, geometry=tw.MaxNorm(), scheme=tw.MirrorMomentum(0.1))
    assert why is not None
    assert "Bregman" in why
    with pytest.raises(ValueError, match="`order` of `MirrorMomentum`"):
        tw.MirrorMomentum(0.1, order=-1.0)
