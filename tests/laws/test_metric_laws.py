r"""Laws of an energy and a metric, before any step is taken: derivative, dissipation, steepest descent, distance.

With $\xi = \mathrm dF(x)$, $v$ the steepest descent direction and $u$ that of a random cotangent (so that $u$ has the
field that moving needs), each supported cell is asked for

1. $\langle\xi, u\rangle = \mathrm d/\mathrm d\varepsilon\,F(\mathrm{move}(\varepsilon u))$, by a fourth-order central
   difference, which shares no code with automatic differentiation;
2. $-\langle\xi, v\rangle = \|v\|^2$, to rounding;
3. $\langle\xi, u\rangle + \tfrac12\|u\|^2 \ge -\tfrac12\|v\|^2$: no direction does better than $v$;

and each state in each geometry for

4. $D(\mathrm{move}(\varepsilon u), x)/\varepsilon^2 \to \|u\|^2$, where there is a distance.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from tests.laws import cells

# A fourth-order difference: its truncation is 1e-16·F⁽⁵⁾/30, where F⁽⁵⁾ is up to 1e8 for rough fluxes through thin
# cells; its rounding is 1e-16·F/1e-4.
_STEP = 1e-4
# Where a norm has several best directions: the tests below put the flow on such points.
_TIES = {
    "one norm": jnp.asarray([0.7, -0.7, 0.7]),
    "max norm": jnp.asarray([0.0, -0.7, 0.3]),
    "p norm": jnp.asarray([0.0, 0.7, 0.0]),
    "spectral norm": jnp.asarray([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
}


@eqx.filter_jit
def _derivative_and_dissipation(energy, state, geometry):
    metric = geometry.at(state)
    xi = tw.first_variation(energy, state)
    v = metric.steepest_descent(xi)
    u = metric.steepest_descent(cells.a_random_cotangent(xi, seed=1))
    # Scaled like v, so that neither drowns the other in the comparisons.
    ratio = jnp.sqrt(metric.norm_squared(v) / metric.norm_squared(u))
    along = jax.lax.map(lambda s: energy(metric.move(u, s * ratio)), _STEP * jnp.asarray([-2.0, -1.0, 1.0, 2.0]))
    difference = jnp.asarray([1.0, -8.0, 8.0, -1.0]) @ along / (12 * _STEP)
    pairings = ratio * tw.pairing(xi, u), tw.pairing(xi, v)
    return along[1], difference, *pairings, ratio**2 * metric.norm_squared(u), metric.norm_squared(v)


def _failures(cell):
    energy, state, geometry, _ = cell.parts
    told = _derivative_and_dissipation(energy, state, geometry)
    value, difference, along_u, along_v, u_squared, v_squared = (float(number) for number in told)
    if not (np.isfinite(v_squared) and v_squared > 0):
        return [f"{cell}: ‖v‖² = {v_squared}"]
    wrong = []
    # ‖u‖‖v‖ = ‖v‖² is the scale of the pairing.
    if not abs(along_u - difference) <= 1e-7 * v_squared + 1e-10 * abs(value):
        wrong.append(f"{cell}: ⟨ξ,u⟩ = {along_u:.12g} but dF/dε = {difference:.12g}")
    if not abs(along_v + v_squared) <= 1e-12 * v_squared:
        wrong.append(f"{cell}: ⟨ξ,v⟩ = {along_v:.15g} but −‖v‖² = {-v_squared:.15g}")
    if not -abs(along_u) + 0.5 * u_squared >= -0.5 * v_squared * (1 + 1e-12):
        wrong.append(
            f"{cell}: a random direction reaches {-abs(along_u) + 0.5 * u_squared:.12g}, steepest descent less"
        )
    return wrong


@pytest.mark.parametrize(("state", "geometry"), cells.pairs())
def test_first_variation_and_steepest_descent_agree(state, geometry):
    found = cells.energies_at(state, geometry)
    assert found, f"no energy is supported at {state} in {geometry}"
    failures = [failure for cell in found for failure in _failures(cell)]
    assert not failures, "\n".join(failures)


@eqx.filter_jit
def _distance_ratios(energy, state, geometry):
    metric = geometry.at(state)
    u = metric.steepest_descent(cells.a_random_cotangent(tw.first_variation(energy, state), seed=2))
    unit = 1 / jnp.sqrt(metric.norm_squared(u))
    steps = jnp.asarray([-2e-3, -1e-3, 1e-3, 2e-3])
    return jax.lax.map(lambda s: metric.distance_squared(metric.move(u, s * unit)) / s**2, steps)


def _has_distance(state, geometry):
    return cells.geometries()[geometry].at(cells.states()[state]).distance_squared is not None


# On the line W₂ and the norm of discrete fluxes differ by O(h²), which a random flux does not resolve: the next test.
_WITH_DISTANCE = [pair for pair in cells.pairs() if _has_distance(*pair) and pair != ("line", "wasserstein")]


@pytest.mark.parametrize(("state", "geometry"), _WITH_DISTANCE)
def test_squared_distance_of_a_small_move_is_its_squared_norm(state, geometry):
    energy, x, d, _ = cells.energies_at(state, geometry)[0].parts
    ratios = np.asarray(_distance_ratios(energy, x, d))
    # The mean of both signs is off by O(ε²): at most 1e-5 for the curvatures here, and less by four at half the step.
    coarse, fine = 0.5 * (ratios[0] + ratios[3]), 0.5 * (ratios[1] + ratios[2])
    assert abs(fine - 1) <= 1e-5, (coarse, fine)
    assert abs(coarse - 1) <= 4e-5, (coarse, fine)


def test_line_distance_and_flux_norm_agree_to_second_order_in_the_cell_width():
    @eqx.filter_jit
    def gap(n):
        state = tw.GridDensity.from_function(lambda x: jnp.exp(-jnp.sum(x**2)), tw.Grid(-3.0, 3.0, n))
        metric = tw.Wasserstein().at(state)
        v = metric.steepest_descent(tw.first_variation(tw.PotentialEnergy(lambda x: jnp.sum(jnp.sin(x))), state))
        # Far below the width of a cell, so that only the discretisation in space is left.
        return metric.distance_squared(metric.move(v, 1e-4)) / 1e-8 / metric.norm_squared(v) - 1

    gaps = np.asarray([gap(n) for n in (40, 80, 160)])
    assert abs(gaps[-1]) < 1e-3
    assert np.all(np.log2(gaps[:-1] / gaps[1:]) > 1.8), gaps


@pytest.mark.parametrize("geometry", _TIES)
def test_dissipation_identity_holds_at_ties(geometry):
    # A linear energy, so that the gradient is the tie itself.
    tie = _TIES[geometry]
    metric = cells.geometries()[geometry].at(tie)
    xi = tw.first_variation(lambda x: jnp.sum(tie * x), tie)
    v = metric.steepest_descent(xi)
    np.testing.assert_allclose(-tw.pairing(xi, v), metric.norm_squared(v), rtol=1e-14)
    assert metric.norm_squared(v) > 0


@pytest.mark.parametrize("geometry", ["euclidean", *_TIES])
def test_no_velocity_where_there_is_no_slope(geometry):
    x = _TIES["spectral norm"] if geometry == "spectral norm" else _TIES["one norm"]
    metric = cells.geometries()[geometry].at(x)
    v = metric.steepest_descent(tw.first_variation(lambda x: 0 * jnp.sum(x), x))
    np.testing.assert_array_equal(v.tangent, jnp.zeros_like(x))
    assert metric.norm_squared(v) == 0


@pytest.mark.parametrize("state", ["particles", "weighted particles"])
def test_symbolic_entropy_is_kept_in_the_cotangent_and_never_paired(state):
    # The trap of DESIGN.md: an entropy that is silently left out of a derivative.
    cell = cells.Cell("kl", state, "wasserstein")
    energy, x, geometry, _ = cell.parts
    xi = tw.first_variation(0.7 * energy, x)
    assert xi.temperature == pytest.approx(0.7)
    with pytest.raises(ValueError, match="symbolic entropy"):
        tw.pairing(xi, geometry.at(x).noise(jax.random.key(0)))
    with pytest.raises(tw.UnsupportedCombination, match="Langevin"):
        geometry.at(x).steepest_descent(xi)
    assert not cells.is_supported(dataclasses.replace(cell, scheme="explicit"))
    assert cells.is_supported(dataclasses.replace(cell, scheme="langevin"))
