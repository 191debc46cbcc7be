r"""One suite for every geometry of vectors: norm, dual norm, oracle, steepest descent, move and distance.

At one state each geometry is given a batch of gradients (two random ones, one with ties, one of rank one with zeros,
and zero), all in one compiled call:

1. $\|\mathrm{lmo}\| = 1$ and $\langle g, \mathrm{lmo}\rangle = -\|g\|_*$;
2. no other unit vector beats it, neither random ones nor its neighbours;
3. $v = \|g\|_*\,\mathrm{lmo}$ minimises $\langle g, v\rangle + \tfrac12\|v\|^2$, and $-\langle g, v\rangle = \|v\|^2$;
4. the dual of the dual norm is the norm: $\langle g, w\rangle \le \|g\|_*\|w\|$, attained at $g = \mathrm d\|w\|$;
5. $\mathrm dF/\mathrm dt = -\|g\|_*^2$ along the flow, to 1e-8, by a fourth-order difference;
6. $D(\mathrm{move}(\varepsilon v), x)/\varepsilon^2 \to \|v\|^2$;
7. a zero gradient gives a zero velocity and a zero oracle.

A norm's own formulas (`dual_norm`, `lmo`, `descent`) are held against those of its metric, which come from `descent`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import thalweg as tw
from thalweg import geometries, likelihoods
from thalweg.geometries import AbstractNorm
from thalweg.states import moving, quadrature_weights

_VECTOR = jnp.asarray([0.6, -1.1, 0.4, 0.9])
_WIDE = jnp.asarray([[0.7, -0.3, 0.5], [0.2, 0.9, -0.4]])
_TREE = {"w": _WIDE, "b": jnp.asarray([0.3, -0.8])}
_POSITIVE = jnp.asarray([0.6, 1.1, 0.4, 0.9])
_TABLE = jnp.asarray([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])
_DEFINITE = jnp.asarray([[1.5, 0.4], [0.4, 0.8]])
_MATRIX = jnp.eye(4) + jnp.asarray([[0.5, 0.3, 0, 0], [0.3, 0, 0.2, 0], [0, 0.2, 0.4, 0], [0, 0, 0, 1.0]])
_REGRESSION = likelihoods.Regression(
    lambda params, x: params["a"] * jnp.exp(-params["b"] * x), jnp.linspace(0.0, 1.5, 4), likelihoods.Normal(0.5)
)
_FEW_STEPS = tw.NewtonSchulz(num_steps=14, smallest=1e-2)
_BY_LEAF = {"w": tw.SpectralNorm(), "b": tw.MaxNorm()}
_SMOOTH = {"w": tw.PNorm(3.0), "b": tw.Euclidean()}
_WEIGHTS = {"w": 0.5, "b": jnp.asarray(2.0)}

GEOMETRIES = {
    "l2": (tw.Euclidean(), _VECTOR),
    "l1": (tw.OneNorm(), _VECTOR),
    "linf": (tw.MaxNorm(), _VECTOR),
    "l1.3": (tw.PNorm(1.3), _VECTOR),
    "l4": (tw.PNorm(4.0), _VECTOR),
    "mahalanobis": (tw.Mahalanobis(_MATRIX), _VECTOR),
    "spectral": (tw.SpectralNorm(), _WIDE),
    "spectral, tall": (tw.SpectralNorm(), _WIDE.T),
    "spectral by newton-schulz": (tw.SpectralNorm(_FEW_STEPS), _WIDE),
    "nuclear": (tw.NuclearNorm(), _WIDE),
    "schatten 1.5": (tw.SchattenNorm(1.5), _WIDE),
    "schatten 4": (tw.SchattenNorm(4.0), _WIDE.T),
    "frobenius": (tw.FrobeniusNorm(), _WIDE),
    "group l2,1": (tw.GroupNorm(), _WIDE),
    "l1 to l2": (tw.OneToTwoNorm(), _WIDE),
    "l1 to rms": (tw.OneToRMSNorm(), _WIDE),
    "rms to linf": (tw.RMSToMaxNorm(), _WIDE),
    "rms to rms": (tw.RMSToRMSNorm(), _WIDE),
    "rms to rms by newton-schulz": (tw.RMSToRMSNorm(_FEW_STEPS), _WIDE.T),
    "maximum of norms": (tw.MaxProduct(_BY_LEAF, _WEIGHTS), _TREE),
    "sum of norms": (tw.SumProduct(_BY_LEAF, _WEIGHTS), _TREE),
    "euclidean product of norms": (tw.EuclideanProduct(_BY_LEAF, _WEIGHTS), _TREE),
    "nested product": (tw.MaxProduct({"w": tw.SumProduct(tw.GroupNorm(), 3.0), "b": tw.OneNorm()}), _TREE),
    "euclidean product of smooth norms": (tw.EuclideanProduct(_SMOOTH, _WEIGHTS), _TREE),
    "entropy on the orthant": (tw.Bregman(tw.OrthantEntropy()), _POSITIVE),
    "entropy on simplices": (tw.Bregman(tw.SimplexEntropy()), _TABLE),
    "itakura-saito": (tw.Bregman(tw.BurgEntropy()), _POSITIVE),
    "log-det": (tw.Bregman(tw.LogDeterminant()), _DEFINITE),
    "squared p-norm": (tw.Bregman(tw.SquaredPNorm(1.5)), _VECTOR),
    "any convex function": (tw.Bregman(lambda x: jnp.sum(x * jnp.log(x)) + 0.1 * jnp.sum(x) ** 2), _POSITIVE),
    "hessian": (tw.Hessian(lambda x: jnp.sum(jnp.cosh(x)) + 0.2 * jnp.sum(x) ** 2), _VECTOR),
    "hessian of log-det": (tw.Hessian(tw.LogDeterminant()), _DEFINITE),
    "riemannian": (tw.Riemannian(lambda x: jnp.diag(0.3 + x**2) + 0.2), _VECTOR),
    "fisher": (tw.FisherRao(), tw.Parametric({"a": jnp.asarray(1.3), "b": jnp.asarray(0.4)}, _REGRESSION)),
}


def _tangent(state, name, values):
    """A tangent of the state with given entries: on the simplex of sum zero, at a symmetric matrix symmetric."""
    flat, unravel = ravel_pytree(moving(state))
    tangent = unravel(values)
    if name == "entropy on simplices":
        return tangent - jnp.mean(tangent, axis=-1, keepdims=True)
    return 0.5 * (tangent + tangent.T) if "log-det" in name else tangent


def _gradients(state):
    """The batch, in flat coordinates; those of a matrix come as one."""
    size = ravel_pytree(moving(state))[0].size
    draw = np.random.default_rng(7)
    tied = np.where(np.arange(size) % 2 == 0, 0.7, -0.7)
    lonely = np.zeros(size)
    lonely[:2] = 1.2, -0.6
    if isinstance(state, jax.Array) and state.ndim == 2:
        # Equal singular values, and a matrix of rank one with zero rows.
        tied = 0.7 * np.eye(*state.shape).ravel()
        lonely = np.outer(np.eye(state.shape[0])[0], [1.2, -0.6, 0.3, 0.1][: state.shape[1]]).ravel()
    return jnp.asarray(np.stack([*draw.normal(size=(2, size)), tied, lonely, np.zeros(size)]))


@eqx.filter_jit
def _told(geometry, state, name, gradients, directions):
    """Everything that the laws compare, for each gradient."""
    metric = geometry.at(state)
    weights, unravel = quadrature_weights(state), ravel_pytree(moving(state))[1]

    def one(gradient):
        xi = tw.Cotangent(unravel(gradient), weights)
        v, unit, dual = metric.steepest_descent(xi), metric.lmo(xi), metric.dual_norm(xi)
        flat_v, flat_unit = ravel_pytree(v.tangent)[0], ravel_pytree(unit.tangent)[0]

        def slope_and_square(flat):
            tangent = tw.Velocity(_tangent(state, name, flat))
            return tw.pairing(xi, tangent), metric.norm_squared(tangent)

        random = jax.vmap(slope_and_square)(directions)
        near_unit = jax.vmap(lambda d: slope_and_square(flat_unit + 0.02 * d))(directions)
        near_v = jax.vmap(lambda d: slope_and_square(flat_v + 0.02 * d))(directions)
        own = None
        if isinstance(geometry, AbstractNorm):
            own = geometry.dual_norm(unravel(gradient)), geometry.lmo(unravel(gradient))
        return {
            "v": v.tangent,
            "unit": unit.tangent,
            "dual": dual,
            "slope of v": tw.pairing(xi, v),
            "square of v": metric.norm_squared(v),
            "slope of unit": tw.pairing(xi, unit),
            "square of unit": metric.norm_squared(unit),
            "others": jax.tree.map(lambda *parts: jnp.concatenate(parts), random, near_unit),
            "near v": near_v,
            "own": own,
        }

    w = _tangent(state, name, directions[0])
    square, slope = jax.value_and_grad(lambda tangent: 0.5 * metric.norm_squared(tw.Velocity(tangent)))(w)
    raised = tw.Cotangent(jax.tree.map(lambda g, weight: g / weight, slope, weights), weights)

    def energy(point):
        flat = ravel_pytree(moving(point))[0]
        return jnp.sum(jnp.sin(flat + jnp.arange(float(flat.size))))

    xi = tw.first_variation(energy, state)
    v = metric.steepest_descent(xi)
    size = jnp.sqrt(metric.norm_squared(v))
    steps = jnp.asarray([-2.0, -1.0, 1.0, 2.0])
    along = jax.lax.map(lambda s: energy(metric.move(v, s * 1e-3 / size)), steps)
    distances = None
    if metric.distance_squared is not None:
        distances = jax.lax.map(lambda s: metric.distance_squared(metric.move(v, s * 1e-3 / size)) / s**2, steps)
    return {
        "batch": jax.vmap(one)(gradients),
        "bidual": (jnp.sqrt(2 * square), metric.dual_norm(raised), tw.pairing(raised, tw.Velocity(w))),
        "rate": (jnp.asarray([1.0, -8.0, 8.0, -1.0]) @ along / 12e-3 * size, metric.dual_norm(xi) ** 2),
        "distance": None if distances is None else 1e6 * 0.5 * (distances[1] + distances[2]),
    }


def _largest(tree):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_oracle_descent_dual_norm_flow_and_distance_agree(name):
    geometry, state = GEOMETRIES[name]
    gradients = _gradients(state)
    directions = jnp.asarray(np.random.default_rng(8).normal(size=(40, gradients.shape[1])))
    told = jax.tree.map(np.asarray, _told(geometry, state, name, gradients, directions))
    batch = told["batch"]
    moves = np.asarray([True] * 4 + [False])
    dual, units = batch["dual"], np.sqrt(batch["square of unit"])
    assert np.all(np.isfinite(ravel_pytree(batch)[0]))
    # 1: to rounding, of powers and decompositions.
    np.testing.assert_allclose(units[moves], 1, rtol=1e-13)
    np.testing.assert_allclose(batch["slope of unit"], -dual, rtol=1e-13)
    assert np.all(dual[moves] > 0)
    # 2, 3: what is beaten is beaten by more than rounding, and nothing beats.
    slopes, squares = batch["others"]
    assert np.all(slopes + np.sqrt(squares) * dual[:, None] >= -1e-12 * dual[:, None])
    np.testing.assert_allclose(-batch["slope of v"], batch["square of v"], rtol=1e-13)
    np.testing.assert_allclose(batch["square of v"], dual**2, rtol=1e-12)
    slopes, squares = batch["near v"]
    assert np.all(slopes + 0.5 * squares >= -0.5 * dual[:, None] ** 2 - 1e-12 * (1 + dual[:, None] ** 2))
    # 4
    norm, of_slope, paired = told["bidual"]
    np.testing.assert_allclose([of_slope, paired], [norm, norm**2], rtol=1e-9)
    # 5: the difference leaves (1e-3)⁴/30 times a fifth derivative; to 1e-8 of the rate.
    measured, rate = told["rate"]
    assert rate > 0.01
    np.testing.assert_allclose(measured, -rate, rtol=1e-8)
    # 6: the mean of both signs is off by the square of the length, 1e-6, times a curvature.
    if told["distance"] is not None:
        np.testing.assert_allclose(told["distance"], 1, rtol=1e-4)
    # 7
    assert _largest(jax.tree.map(lambda leaf: leaf[4], (batch["v"], batch["unit"]))) == 0
    assert dual[4] == 0
    if batch["own"] is not None:
        np.testing.assert_allclose(batch["own"][0], dual, rtol=1e-12, atol=1e-300)
        for own, of_metric in zip(*map(jax.tree.leaves, (batch["own"][1], batch["unit"])), strict=True):
            np.testing.assert_allclose(own, of_metric, atol=1e-12)


def test_the_suite_holds_every_geometry_of_vectors_and_every_mirror_map():
    listed = {cls for geometry, _ in GEOMETRIES.values() for cls in map(type, _modules(geometry))}
    bases = (geometries.AbstractNorm, geometries.AbstractLegendre, geometries.AbstractPolar)
    public = {
        cls
        for cls in vars(geometries).values()
        if isinstance(cls, type) and issubclass(cls, bases) and not cls.__name__.startswith("Abstract")
    }
    public |= {tw.Bregman, tw.Hessian, tw.Riemannian, tw.FisherRao}
    assert len(GEOMETRIES) >= 25
    assert public <= listed, public - listed


def _modules(node):
    leaves = jax.tree.leaves(node, is_leaf=lambda part: part is not node and isinstance(part, eqx.Module))
    inner = [part for part in leaves if isinstance(part, eqx.Module)]
    fields = [getattr(node, name, None) for name in ("polar", "h")]
    inner += [part for part in fields if isinstance(part, eqx.Module) and not any(part is i for i in inner)]
    return [node, *(module for part in inner for module in _modules(part))]
