"""Linear algebra on pytrees: the sums, products and norms that flows need, leaf by leaf.

A leaf of a tangent or cotangent that does not take part (an integer, a switch, a function) is `None` or not a
floating array and is passed over.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer

from thalweg._types import Array, PyTree, Scalar


def is_traced(leaf: Any) -> bool:
    """Whether a value is only a stand-in while JAX traces a function, so that it cannot be looked at now."""
    return isinstance(leaf, Tracer)


def floating(tree: PyTree) -> PyTree:
    """The floating-point leaves of `tree`; every other leaf becomes `None`."""
    return eqx.filter(tree, eqx.is_inexact_array)


def multiply_add(tree: PyTree, scale: Any, direction: PyTree) -> PyTree:
    """Return `tree + scale * direction` on the floating leaves and `tree` elsewhere."""

    def leaf(direction_leaf: Any, tree_leaf: Any) -> Any:
        if direction_leaf is None or not eqx.is_inexact_array(tree_leaf):
            return tree_leaf
        return tree_leaf + jnp.asarray(scale, tree_leaf.dtype) * direction_leaf

    return jax.tree.map(leaf, direction, tree, is_leaf=lambda leaf: leaf is None)


def scale_by(tree: PyTree, factor: Any) -> PyTree:
    """Return `factor * tree`, leaf by leaf."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, tree)


def dot(left: PyTree, right: PyTree) -> Scalar:
    """Sum over all leaves of the elementwise products: the Euclidean inner product of two trees."""
    return _reduce_pairs(lambda a, b: jnp.sum(a * b), left, right)


def weighted_dot(weights: PyTree, left: PyTree, right: PyTree) -> Scalar:
    """Sum over all leaves of `weights * left * right`, the weights broadcast to each leaf."""
    products = jax.tree.map(lambda w, a, b: jnp.sum(broadcast_weight(w, a) * a * b), weights, left, right)
    return total(products)


def broadcast_weight(weight: Any, leaf: Array) -> Array:
    """Weights given along the leading axes, shaped so that they multiply `leaf`."""
    weight = jnp.asarray(weight, leaf.dtype)
    return jnp.broadcast_to(weight.reshape(weight.shape + (1,) * (leaf.ndim - weight.ndim)), leaf.shape)


def total(tree: PyTree) -> Scalar:
    """The sum of a tree of scalars."""
    leaves = jax.tree.leaves(tree)
    return jnp.asarray(sum(leaves[1:], start=leaves[0])) if leaves else jnp.zeros(())


def _reduce_pairs(fn: Callable[[Array, Array], Array], left: PyTree, right: PyTree) -> Scalar:
    return total(jax.tree.map(fn, left, right))


def all_finite(tree: PyTree) -> Array:
    """Whether every floating leaf is finite, as a boolean array of shape `()`."""
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.all(jnp.stack(checks)) if checks else jnp.asarray(True)


def where(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Choose one of two trees of equal structure by a scalar condition."""

    def leaf(a: Any, b: Any) -> Any:
        if not eqx.is_array(a):
            return a
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = jnp.where(condition, jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
        return jnp.where(condition, a, b)

    return jax.tree.map(leaf, if_true, if_false)


def stop_gradient(tree: PyTree) -> PyTree:
    """The same tree, taken as constant by differentiation."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_array(leaf) else leaf, tree)


def dtype_of(tree: PyTree) -> Any:
    """The common floating dtype of a tree: that of its widest floating leaf (the default float if there is none)."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return max(dtypes, key=lambda dtype: dtype.itemsize) if dtypes else jnp.zeros(()).dtype


def num_bytes(tree: PyTree) -> int:
    """The memory that the arrays of a tree take, in bytes; works on shapes (`jax.ShapeDtypeStruct`) too."""
    sizes = (leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))
    return int(sum(sizes))
