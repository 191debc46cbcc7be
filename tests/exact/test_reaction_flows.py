"""Fisher–Rao and Hellinger–Kantorovich flows of grid densities against closed forms (15, power means, Gaussians)."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import generators

GRID = tw.Grid(-5.0, 5.0, 48)


def _two_wells(point):
    wells = jnp.stack([-((point[0] - 1.3) ** 2) / 0.6, -((point[0] + 1.5) ** 2) / 1.1])
    return jax.scipy.special.logsumexp(wells)


_LOG_MASS = jnp.log(jnp.sum(jnp.exp(jax.vmap(_two_wells)(GRID.centres))) * GRID.cell_volume)
TARGET = tw.Target(lambda point: _two_wells(point) - _LOG_MASS, 1)
P = jnp.exp(jax.vmap(TARGET.log_density)(GRID.centres))
START = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum((x - 1.5) ** 2) / 0.2), GRID)
# ∫q log(q/π) − q + π up to a constant: its minimum over all measures is π.
UNBALANCED_KL = tw.KL(TARGET) + tw.PotentialEnergy(lambda x: jnp.asarray(-1.0))


def l1(a, b):
    return float(jnp.sum(jnp.abs(a - b)) * GRID.cell_volume)


FISHER_RAO = tw.FisherRao()
SOLVERS = {
    tw.FisherRao: tw.ReplicatorIntegrator(),
    tw.HellingerKantorovich: tw.TransportReactionSplitting(),
    tw.Wasserstein: tw.FiniteVolume(),
}


def after(energy, start, time, geometry=FISHER_RAO):
    """The density after a time, by the integrator itself: a whole flow takes longer to compile."""
    solver = SOLVERS[type(geometry)]

    @jax.jit
    def advanced(state, time):
        return solver.advance(energy, geometry, state, time, solver.init(energy, geometry, state, time))

    moved = advanced(start, jnp.asarray(time))
    assert moved.result == tw.RESULTS.successful
    return moved.state


@pytest.mark.parametrize("time", [0.01, 1.0, 20.0])
def test_kl_is_exact_in_one_step_of_any_length(time):
    path = tw.rollout(tw.KL(TARGET), START, geometry=FISHER_RAO, scheme=tw.Continuous(time), num_steps=1)
    assert path.result == tw.RESULTS.successful
    a = np.exp(-time)
    expected = jnp.exp(a * jnp.log(START.values) + (1 - a) * jnp.log(P))
    expected = expected / (jnp.sum(expected) * GRID.cell_volume)
    # The logarithm of a tail has rounding of its own size, here 140 units.
    np.testing.assert_allclose(path.final.state.values, expected, rtol=1e-12)
    assert "replicator" in dict(path.stats)["solver"]


def test_a_potential_and_an_entropy_of_any_temperature_are_exact():
    potential, temperature, time = (lambda x: jnp.sum(jnp.cos(2 * x))), 0.3, 2.5
    energy = tw.PotentialEnergy(potential) + temperature * tw.Entropy()
    found = after(energy, START, time).values
    a = np.exp(-temperature * time)
    expected = jnp.exp(a * jnp.log(START.values) - (1 - a) / temperature * jax.vmap(potential)(GRID.centres))
    np.testing.assert_allclose(found, expected / (jnp.sum(expected) * GRID.cell_volume), rtol=1e-12)


def test_forward_kl_mixes_linearly():
    # ξ = −p/q, so ∂q/∂t = p − q.
    found = after(tw.FDivergence(generators.forward_kl, TARGET), START, 1.0).values
    expected = P + np.exp(-1.0) * (START.values - P)
    # Eight substeps, each to a tolerance of 1e-6.
    assert l1(found, expected) < 2e-6


@pytest.mark.parametrize(
    ("generator", "power"), [("pearson_chi2", 2.0), ("neyman_chi2", -1.0), ("squared_hellinger", 0.5)]
)
def test_alpha_divergences_move_along_power_means(generator, power):
    # With Y = q^a up to a factor and a change of time the flow is Y' = p^a − Y: q^a stays between q₀^a and p^a.
    narrow = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum((x - 1.5) ** 2) / 0.1), GRID)
    assert float(jnp.min(narrow.values)) < 1e-80
    found = after(tw.FDivergence(getattr(generators, generator), TARGET), narrow, 0.5).values
    columns = jnp.stack([P**power, narrow.values**power], axis=1) / (found**power)[:, None]
    weights = jnp.linalg.lstsq(columns * jnp.sqrt(found)[:, None], jnp.sqrt(found))[0]
    mean = jnp.sum(weights[None] * columns, axis=1) ** (1 / power) * found
    assert float(jnp.min(weights)) > 0
    # The multiplier alone is approximated, and it is the same for all cells; what is left is that the cells fill from
    # 1e-80 within one substep.
    assert l1(mean, found) < 1e-5


def _rough(order_of):
    """A local energy with no closed form, an interaction and a potential."""
    local = tw.InternalEnergy(lambda q: q**2 + 0.3 * jnp.cos(q))
    pairs = tw.InteractionEnergy(lambda z: jnp.exp(-jnp.sum(z**2)))
    return {"local": local, "non-local": local + pairs + tw.PotentialEnergy(lambda x: 0.2 * jnp.sum(x**2))}[order_of]


@pytest.mark.parametrize("kind", ["local", "non-local"])
def test_substeps_are_of_second_order(kind):
    energy, solver, time = _rough(kind), tw.ReplicatorIntegrator(tolerance=1e9, max_substeps=1), 0.8

    @jax.jit
    def after(start, substep, count):
        def once(_, state):
            # Begun with the whole interval, so that it is one substep.
            return solver.advance(energy, tw.FisherRao(), state, substep, substep).state

        return jax.lax.fori_loop(0, count, once, start)

    ends = {n: after(START, jnp.asarray(time / n), n).values for n in (8, 16, 32, 512)}
    errors = [l1(ends[n], ends[512]) for n in (8, 16, 32)]
    assert errors[0] < 1e-2
    assert np.log2(errors[0] / errors[1]) > 1.9
    assert np.log2(errors[1] / errors[2]) > 1.9


def test_cells_that_are_empty_stay_empty():
    values = jnp.where(jnp.abs(GRID.centres[:, 0]) < 2, START.values, 0)
    start = tw.GridDensity.normalised(values, GRID)
    steep = tw.FDivergence(generators.pearson_chi2, TARGET) + 0.1 * tw.PorousMedium(0.5)
    for energy in (tw.KL(TARGET), steep + tw.InteractionEnergy(lambda z: jnp.exp(-jnp.sum(z**2)))):
        found = after(energy, start, 0.3).values
        assert bool(jnp.all(jnp.isfinite(found)))
        np.testing.assert_array_equal(found == 0, start.values == 0)


def test_derivatives_pass_through_the_multiplier_and_the_substeps():
    # Substeps of a fixed number: what they are is no part of the derivative, and moves with the shift.
    solver = tw.ReplicatorIntegrator(tolerance=1e9, max_substeps=4)

    def mean_after(shift):
        target = tw.Target(lambda point: TARGET.log_density(point - shift), 1)
        energy = tw.FDivergence(generators.squared_hellinger, target)
        return solver.advance(energy, FISHER_RAO, START, jnp.asarray(0.5), jnp.asarray(0.1)).state.mean()[0]

    h = 1e-4
    value = jax.jit(mean_after)
    difference = (value(jnp.asarray(0.1 + h)) - value(jnp.asarray(0.1 - h))) / (2 * h)
    np.testing.assert_allclose(jax.jit(jax.grad(mean_after))(jnp.asarray(0.1)), difference, rtol=1e-7)


def test_pure_reaction_is_exact_without_the_mass_constraint():
    time, geometry = 0.7, tw.HellingerKantorovich(transport=0.0, reaction=2.0)
    start = tw.GridDensity.measure(3 * START.values, GRID)
    found = after(UNBALANCED_KL, start, time, geometry).values
    np.testing.assert_allclose(found, P * (start.values / P) ** np.exp(-2 * time), rtol=1e-12)
    # With ∫q log(q/π) alone the limit is π/e.
    limit = after(tw.KL(TARGET), start, 40.0, geometry).values
    np.testing.assert_allclose(limit, P / np.e, rtol=1e-12)


def test_without_one_of_its_parts_it_is_the_flow_of_the_other():
    energy = tw.FDivergence(generators.jensen_shannon, TARGET)
    for special, usual in (
        (tw.HellingerKantorovich(reaction=0.0), tw.Wasserstein()),
        (tw.HellingerKantorovich(transport=0.0, conserve_mass=True), tw.FisherRao()),
    ):
        ends = [after(energy, START, 0.4, geometry).values for geometry in (special, usual)]
        # Both begin with other substeps: 2e-3 of the mass has moved, to the tolerances of the two integrators.
        assert l1(ends[0], START.values) > 1e-2
        assert l1(*ends) < 5e-5


def test_a_gaussian_stays_gaussian_while_it_moves_and_grows():
    # π = N(0, σ²). Reaction relaxes 1/s² and m/s² linearly to those of π, transport is Ornstein–Uhlenbeck; the mass M
    # grows at the rate −(log M + KL(N(m, s²)‖π)).
    variance, time = 0.8, 0.6

    def rates(t, y, args):
        log_mass, mean, spread = y
        divergence = 0.5 * (spread / variance + mean**2 / variance - 1 - jnp.log(spread / variance))
        by_reaction = spread * (1 - spread / variance)
        return jnp.stack(
            [
                -(log_mass + divergence),
                -mean / variance - mean * spread / variance,
                2 * (1 - spread / variance) + by_reaction,
            ]
        )

    begin = jnp.asarray([jnp.log(1.5), 0.9, 0.3])
    exact = diffrax.diffeqsolve(
        diffrax.ODETerm(rates),
        diffrax.Tsit5(),
        0.0,
        time,
        0.01,
        begin,
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-10),
    ).ys[-1]
    target = tw.Target(lambda x: -0.5 * jnp.sum(x**2) / variance - 0.5 * jnp.log(2 * jnp.pi * variance), 1)
    energy = tw.KL(target) + tw.PotentialEnergy(lambda x: jnp.asarray(-1.0))
    errors = []
    for n in (32, 64):
        grid = tw.Grid(-5.0, 5.0, n)
        values = 1.5 * jnp.exp(-0.5 * (grid.centres[:, 0] - 0.9) ** 2 / 0.3) / jnp.sqrt(2 * jnp.pi * 0.3)
        state = after(energy, tw.GridDensity.measure(values, grid), time, tw.HellingerKantorovich())
        mean = state.mean()[0] / state.mass
        spread = jnp.sum(state.values * (grid.centres[:, 0] - mean) ** 2) / jnp.sum(state.values)
        errors.append(np.abs(np.asarray(jnp.stack([jnp.log(state.mass), mean, spread]) - exact)))
    # h² = 0.1, then a quarter of it.
    assert np.max(errors[0]) < 3e-2
    assert np.all(np.log2(errors[0] / errors[1]) > 1.8)


def test_it_contracts_to_the_target_by_reaction_alone():
    start = tw.GridDensity.measure(2 * START.values, GRID)
    scheme = tw.Continuous(1.0)
    path = tw.flow(UNBALANCED_KL, start, geometry=tw.HellingerKantorovich(), scheme=scheme, num_steps=6)
    # A maximum principle: transport does not raise the largest |log(q/π)|, and reaction shrinks it by e^{−t}.
    distance = jnp.max(jnp.abs(jnp.log(path.states.values / P[None])), axis=1)
    assert bool(jnp.all(distance <= distance[0] * jnp.exp(-path.times) * (1 + 1e-6)))
    assert float(jnp.max(jnp.diff(path.energies))) <= 0
    assert path.energy_balance().relative_error < 1e-3


def test_a_measure_may_have_any_mass():
    values = jnp.full(GRID.shape, 0.7)
    assert float(tw.GridDensity.measure(values, GRID).mass) == pytest.approx(7.0)
    with pytest.raises(ValueError, match=r"GridDensity\.measure|normalised"):
        tw.GridDensity(values, GRID)
    with pytest.raises(ValueError, match="non-negative with a positive sum"):
        tw.GridDensity.measure(-values, GRID)


def test_bad_weights_are_refused():
    with pytest.raises(ValueError, match="`reaction` of `HellingerKantorovich`"):
        tw.HellingerKantorovich(reaction=-1.0)
    with pytest.raises(ValueError, match="both zero"):
        tw.HellingerKantorovich(reaction=0.0, transport=0.0)


def test_integrators_say_where_they_do_not_belong():
    for solver in (tw.ReplicatorIntegrator(), tw.TransportReactionSplitting()):
        reason = tw.why_unsupported(tw.KL(TARGET), START, geometry=tw.Wasserstein(), scheme=tw.Continuous(0.1, solver))
        assert reason is not None
        assert type(solver).__name__ in reason
