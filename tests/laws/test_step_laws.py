"""Laws of a step: what every scheme keeps, whatever the energy, the state and the geometry.

Three steps of each cell are run. They succeed; the state keeps its structure and its types; on a grid the mass stays
and no value is negative; the energy does not rise; a proximal step satisfies its certificate
F(x⁺) + D(x⁺, x)/2α ≤ F(x); and the energy that a step says it dissipated is the energy that was lost, to the order of
the scheme.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from tests.laws import cells
from thalweg.energies import as_energy
from thalweg.states import admissibility

_NUM_STEPS = 3
_NOT_CONVERGED = str(tw.RESULTS[tw.RESULTS.inner_solver_failed])


@eqx.filter_jit
def _run(energy, state, geometry, scheme, key):
    """The states after each step, their energies, and what the steps said."""
    energy = as_energy(energy)
    arrays, static = eqx.partition((state, scheme.init(energy, geometry, state, key)), eqx.is_array)

    def step(carry, number):
        here, memory = eqx.combine(carry, static)
        moved, memory, info = scheme.step(energy, geometry, here, memory, jax.random.fold_in(key, number))
        carry = jax.tree.map(lambda new, old: new.astype(old.dtype), eqx.filter((moved, memory), eqx.is_array), carry)
        kinetic = info.stats.get("kinetic", jnp.zeros_like(info.step_size))
        told = (info.step_size, info.distance_squared, info.dissipated, info.result, admissibility(moved), kinetic)
        return carry, (carry[0], told)

    _, (states, told) = jax.lax.scan(step, arrays, jnp.arange(_NUM_STEPS))
    states = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), arrays[0], states)
    if tw.decompose(energy).temperature is not None and not getattr(state, "knows_density", True):
        return states, jnp.zeros(()), told
    return states, jax.lax.map(lambda s: energy(eqx.combine(s, static[0])), states), told


def _failures(cell):
    energy, state, geometry, scheme = cell.parts
    scheme = scheme.resolve(as_energy(energy), geometry, state)
    states, energies, told = _run(energy, state, geometry, scheme, jax.random.key(1))
    step_sizes, distances, dissipated, result, admissible, kinetic = told
    energies, step_sizes, distances, dissipated = map(np.asarray, (energies, step_sizes, distances, dissipated))
    said = [str(tw.RESULTS[r]) for r in _each(result) if not bool(r == tw.RESULTS.successful)]
    said += [str(tw.RESULTS[r]) for r in _each(admissible) if not bool(r == tw.RESULTS.successful)]
    if said:
        honest = _slides(cell) and said[0] == _NOT_CONVERGED
        # Without diffusion nothing but upwinding keeps a density positive, and the run says so.
        carried = cell.energy in ("potential", "interaction") and cell.scheme == "continuous by ode"
        honest |= carried and said[0] == str(tw.RESULTS[tw.RESULTS.negative_density])
        return [] if honest else [f"{cell}: {said[0]}"]
    wrong = []
    # The distance that a Langevin step tells is that of its drift, which an entropy alone does not have.
    if not (np.all(step_sizes > 0) and np.all(distances >= 0 if cell.scheme == "langevin" else distances > 0)):
        wrong.append(f"{cell}: steps of {step_sizes}, squared distances {distances}")
    if isinstance(state, tw.GridDensity):
        values = np.asarray(states.values)
        keeps_mass = not isinstance(geometry, tw.HellingerKantorovich) or geometry.conserve_mass
        masses = values.reshape(_NUM_STEPS + 1, -1).sum(axis=1) * state.grid.cell_volume
        if keeps_mass and np.max(np.abs(masses - masses[0])) > 1e-13 * values[0].size:
            wrong.append(f"{cell}: mass {masses}")
        if values.min() < 0:
            wrong.append(f"{cell}: smallest value {values.min()}")
    if cell.scheme == "langevin":
        return wrong
    rounding = 1e-13 * (1 + abs(energies[0]))
    # Under momentum the energy may rise; what falls is the energy and the kinetic energy together.
    total = energies + np.concatenate([[0.0], np.asarray(kinetic)])
    if np.any(np.diff(total) > rounding):
        wrong.append(f"{cell}: the energy rose, {total}")
    if isinstance(scheme, tw.Proximal) and np.any(np.diff(energies) + distances / (2 * step_sizes) > rounding):
        wrong.append(f"{cell}: F(x⁺) + D/2α − F(x) = {np.diff(energies) + distances / (2 * step_sizes)}")
    # To the order: half a step of the fastest rate, here at most about a third; backtracking and trust take steps of
    # any size, and finite volumes carry what does not diffuse upwind, which dissipates O(h) more on these coarse grids.
    lost = -np.diff(energies)
    carried = cell.energy in ("potential", "interaction") and cell.scheme.startswith("continuous")
    exempt = cell.scheme in ("backtracking", "learnt scale") or carried
    if not exempt and np.any(np.abs(lost - dissipated) > 0.35 * np.maximum(lost, dissipated) + rounding):
        wrong.append(f"{cell}: lost {lost}, said to be dissipated {dissipated}")
    return wrong


def _slides(cell):
    """Whether the flow has a velocity that jumps: it slides along ties, where an ODE solver may give up by its name."""
    corners = ("one norm", "max norm", "spectral norm", "product of norms")
    return cell.geometry in corners and cell.scheme.startswith("continuous")


def _each(results):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(_NUM_STEPS)]


def _sample(state, geometry):
    """One energy for each scheme, another one each time, so that all meet all somewhere."""
    number = cells.pairs().index((state, geometry))
    for place, scheme in enumerate(cells.schemes()):
        if scheme in cells.VARIANTS and (state, geometry) not in cells.VARIANTS[scheme]:
            continue
        energies = list(cells.energies_for(state))
        first = (number + place) % len(energies)
        for energy in energies[first:] + energies[:first]:
            if cells.is_supported(cells.Cell(energy, state, geometry, scheme)):
                yield cells.Cell(energy, state, geometry, scheme)
                break


@pytest.mark.parametrize(("state", "geometry"), cells.pairs())
def test_every_scheme_keeps_what_it_must(state, geometry):
    failures = [failure for cell in _sample(state, geometry) for failure in _failures(cell)]
    assert not failures, "\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize(("state", "geometry"), cells.pairs())
def test_every_supported_cell_keeps_what_it_must(state, geometry):
    failures = [failure for cell in cells.supported(state, geometry) for failure in _failures(cell)]
    assert not failures, "\n".join(failures)
