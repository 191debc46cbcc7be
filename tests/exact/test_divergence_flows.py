"""The flows of nine divergences in three geometries, 1000 short steps each: every step keeps what they keep."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import generators

GRID = tw.Grid(-3.0, 3.0, 24)
TARGET_DENSITY = tw.GridDensity.from_function(
    lambda x: jnp.exp(-2 * (x[0] + 1) ** 2) + 0.5 * jnp.exp(-3 * (x[0] - 1.2) ** 2) + 1e-3, GRID
)
START = tw.GridDensity.from_function(lambda x: jnp.exp(-0.5 * jnp.sum((x - 0.6) ** 2) / 0.15), GRID)
GENERATORS = {
    **{name: generators.KNOWN[name] for name in ("reverse_kl", "forward_kl", "pearson_chi2", "neyman_chi2")},
    **{name: generators.KNOWN[name] for name in ("squared_hellinger", "jensen_shannon", "jeffreys")},
    "alpha_half": generators.alpha(0.5),
    "alpha_two": generators.alpha(2.0),
}
FLOWS = {
    "wasserstein": (tw.Wasserstein(), tw.FiniteVolume()),
    "fisher_rao": (tw.FisherRao(), tw.ReplicatorIntegrator()),
    # Mass conserved: a divergence between densities of mass one need not have its minimum over all measures there.
    "hellinger_kantorovich": (tw.HellingerKantorovich(conserve_mass=True), tw.TransportReactionSplitting()),
}
NUM_STEPS, STEP = 1000, 2e-3


def _thousand_steps(energy, geometry, solver):
    """A function of the start to the masses, smallest values, energies, sizes of the terms and the last density."""

    def size(state):
        # q f(p/q) is made of terms of its own size, and of q and p times what f has of constants and slopes at one.
        terms = jnp.abs(jax.vmap(energy.of_values)(state.values, jnp.log(TARGET_DENSITY.values)))
        return jnp.sum(terms + state.values + TARGET_DENSITY.values) * GRID.cell_volume

    def look(state):
        return jnp.sum(state.values) * GRID.cell_volume, jnp.min(state.values), energy(state), size(state)

    @jax.jit
    def run(values):
        start = eqx.tree_at(lambda s: s.values, START, values)
        memory = solver.init(energy, geometry, start, jnp.asarray(STEP))

        def once(carry, _):
            state, memory = carry
            step = solver.advance(energy, geometry, state, jnp.asarray(STEP), memory)
            fine = step.result == tw.RESULTS.successful
            return (step.state, step.memory), (*look(step.state), fine)

        (last, _), found = jax.lax.scan(once, (start, memory), None, length=NUM_STEPS)
        return found, last.values

    return run


def _cells():
    for geometry in FLOWS:
        for name in GENERATORS:
            # Compilation is what takes the time: of the flows of both kinds three are in the default run.
            rare = geometry == "hellinger_kantorovich" and name not in ("reverse_kl", "squared_hellinger")
            rare = rare or name in ("alpha_half", "alpha_two", "jeffreys", "jensen_shannon")
            yield pytest.param(geometry, name, marks=[pytest.mark.slow] if rare else [])


@pytest.mark.parametrize(("geometry", "generator"), list(_cells()))
def test_a_thousand_steps_keep_mass_sign_energy_and_target(geometry, generator):
    energy = tw.FDivergence(GENERATORS[generator], TARGET_DENSITY)
    run = _thousand_steps(energy, *FLOWS[geometry])
    (mass, least, energies, sizes, fine), last = run(START.values)
    assert bool(jnp.all(fine))
    assert float(jnp.max(jnp.abs(mass - 1))) <= 1e-13
    assert float(jnp.min(least)) >= 0
    before = jnp.concatenate([energy(START)[None], energies[:-1]])
    assert float(jnp.max((energies - before) / sizes)) <= 1e-13
    # It goes somewhere.
    assert float(energies[-1]) < float(energy(START)) - 0.05
    _, kept = run(TARGET_DENSITY.values)
    assert float(jnp.sum(jnp.abs(kept - TARGET_DENSITY.values))) * GRID.cell_volume <= 1e-12
    # Growth keeps each cell to rounding. The fluxes of `FiniteVolume` vanish at the target to rounding only, which adds
    # up over 1000 steps: up to 5.7e-11 (Jensen–Shannon, in its substeps inside the splitting).
    drift = 1e-12 if geometry == "fisher_rao" else 2e-10
    np.testing.assert_allclose(kept, TARGET_DENSITY.values, rtol=drift)
