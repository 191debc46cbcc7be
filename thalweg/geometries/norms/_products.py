r"""One norm for a whole pytree from a norm for each part of it.

With weights wᵢ > 0 and the norms ‖·‖ᵢ of the parts vᵢ:

| product | norm | dual | steepest descent of part i |
|---|---|---|---|
| maximum | maxᵢ wᵢ‖vᵢ‖ᵢ | Σᵢ ‖gᵢ‖ᵢ*/wᵢ | ‖g‖* lmoᵢ(gᵢ)/wᵢ: all parts move |
| sum | Σᵢ wᵢ‖vᵢ‖ᵢ | maxᵢ ‖gᵢ‖ᵢ*/wᵢ | ‖g‖* lmoᵢ(gᵢ)/wᵢ for the first largest part, zero elsewhere |
| Euclidean | (Σᵢ wᵢ²‖vᵢ‖ᵢ²)^½ | (Σᵢ ‖gᵢ‖ᵢ*²/wᵢ²)^½ | its own, divided by wᵢ² |

A larger weight makes a part slower. Products nest.

`norms` is a pytree of norms that begins like the state: a norm stands for the leaf or sub-tree in its place. One for
each leaf: `jax.tree.map(lambda leaf: tw.SpectralNorm() if leaf.ndim == 2 else tw.MaxNorm(), params)`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._types import Array, PyTree, Scalar, State
from thalweg.geometries.norms._base import AbstractNorm, dual_and_lmo, safe_sqrt
from thalweg.states import moving


class AbstractProduct(AbstractNorm):
    """A norm for each part of a pytree, and how the numbers are joined."""

    norms: eqx.AbstractVar[PyTree]
    weights: eqx.AbstractVar[PyTree]

    # Whether the squares of the parts are added: then it is as smooth as its parts, and an inner product if they are.
    adds_squares: ClassVar[bool] = False

    def __check_init__(self) -> None:
        _check(self)

    @abc.abstractmethod
    def joined(self, norms: Array) -> Scalar:
        """The norm, from the weighted norms of the parts."""

    @abc.abstractmethod
    def joined_duals(self, norms: Array) -> Scalar:
        """The dual norm, from those of the parts."""

    def norm(self, tangent: Any) -> Scalar:
        return self.joined(jnp.stack([w * norm.norm(part) for norm, w, part in _parts(self, tangent)]))

    def dual_norm(self, gradient: Any) -> Scalar:
        return self.joined_duals(jnp.stack([norm.dual_norm(part) / w for norm, w, part in _parts(self, gradient)]))

    def check(self, state: State) -> None:
        _check_parts(self, state)

    @property
    def is_smooth(self) -> bool:
        return self._is_like_parts and all(norm.is_smooth for norm in _norms(self))

    @property
    def is_inner_product(self) -> bool:
        return self._is_like_parts and all(norm.is_inner_product for norm in _norms(self))

    @property
    def _is_like_parts(self) -> bool:
        return self.adds_squares or len(_norms(self)) == 1


class MaxProduct(AbstractProduct):
    r"""$\|v\| = \max_i w_i\|v_i\|_i$ over the parts of a pytree: every part takes the steepest step of its own norm,
    all of the same length. With spectral norms this is Muon, with maximum norms sign descent.

    **Arguments:** `norms`: a pytree of norms that begins like the state; `weights`: one positive number, or a pytree
    like `norms` of them.

    **Raises:** `ValueError` if the tree of norms does not fit the state, or a weight is not positive.

    **Source:** Large et al., *Scalable optimization in the modular norm* (2024).
    """

    norms: PyTree
    weights: PyTree = 1.0

    def joined(self, norms: Array) -> Scalar:
        return jnp.max(norms)

    def joined_duals(self, norms: Array) -> Scalar:
        return jnp.sum(norms)

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        duals, oracles = _duals_and_oracles(self, gradient)
        total = jnp.sum(duals)
        return _joined(self, gradient, [_tree.scale_by(oracle, total) for oracle in oracles])


class SumProduct(AbstractProduct):
    r"""$\|v\| = \sum_i w_i\|v_i\|_i$ over the parts of a pytree: only the part with the largest dual norm moves, the
    first of them where several are equal (block Gauss–Southwell).

    **Arguments:** as for [`thalweg.MaxProduct`][].

    **Raises:** `ValueError` if the tree of norms does not fit the state, or a weight is not positive.

    **Source:** Nutini, Laradji, Schmidt, *Let's make block coordinate descent converge faster* (2022).
    """

    norms: PyTree
    weights: PyTree = 1.0

    def joined(self, norms: Array) -> Scalar:
        return jnp.sum(norms)

    def joined_duals(self, norms: Array) -> Scalar:
        return jnp.max(norms)

    def norm_squared(self, tangent: Any) -> Scalar:
        return self.norm(tangent) ** 2

    def descent(self, gradient: Any) -> Any:
        duals, oracles = _duals_and_oracles(self, gradient)
        chosen = jnp.where(jnp.arange(duals.size) == jnp.argmax(duals), duals, 0)
        return _joined(self, gradient, [_tree.scale_by(o, chosen[i]) for i, o in enumerate(oracles)])


class EuclideanProduct(AbstractProduct):
    r"""$\|v\|^2 = \sum_i w_i^2\|v_i\|_i^2$ over the parts of a pytree: every part takes the descent of its own norm,
    with a step size divided by $w_i^2$. An inner product where all parts have one.

    **Arguments:** as for [`thalweg.MaxProduct`][].

    **Raises:** `ValueError` if the tree of norms does not fit the state, or a weight is not positive.
    """

    norms: PyTree
    weights: PyTree = 1.0

    adds_squares = True

    def joined(self, norms: Array) -> Scalar:
        return safe_sqrt(jnp.sum(norms**2))

    def joined_duals(self, norms: Array) -> Scalar:
        return safe_sqrt(jnp.sum(norms**2))

    def norm_squared(self, tangent: Any) -> Scalar:
        return jnp.sum(jnp.stack([w**2 * norm.norm_squared(part) for norm, w, part in _parts(self, tangent)]))

    def descent(self, gradient: Any) -> Any:
        moved = [_tree.scale_by(norm.descent(part), w**-2) for norm, w, part in _parts(self, gradient)]
        return _joined(self, gradient, moved)


def _is_norm(node: Any) -> bool:
    return isinstance(node, AbstractNorm)


def _norms(product: Any) -> list[AbstractNorm]:
    return jax.tree.leaves(product.norms, is_leaf=_is_norm)


def _weights(product: Any) -> list[Any]:
    weights, norms = jax.tree.leaves(product.weights), _norms(product)
    return weights * len(norms) if len(weights) == 1 else weights


def _parts(product: Any, tree: Any) -> list[tuple[AbstractNorm, Array, Any]]:
    """Each norm with its weight and its part of a tree, less the parts in which nothing moves."""
    structure = jax.tree.structure(product.norms, is_leaf=_is_norm)
    found = zip(_norms(product), _weights(product), structure.flatten_up_to(tree), strict=True)
    return [(norm, jnp.asarray(w, _tree.dtype_of(part)), part) for norm, w, part in found if jax.tree.leaves(part)]


def _joined(product: Any, like: Any, parts: list[Any]) -> Any:
    """A tree like `like` with other parts in the places that move."""
    structure = jax.tree.structure(product.norms, is_leaf=_is_norm)
    given = iter(parts)
    return structure.unflatten(next(given) if jax.tree.leaves(p) else p for p in structure.flatten_up_to(like))


def _duals_and_oracles(product: Any, gradient: Any) -> tuple[Array, list[Any]]:
    """The dual norm and the oracle of each part, in its weighted norm."""
    pairs = [(w, *dual_and_lmo(norm, part)) for norm, w, part in _parts(product, gradient)]
    return jnp.stack([dual / w for w, dual, _ in pairs]), [_tree.scale_by(oracle, 1 / w) for w, _, oracle in pairs]


def _check(product: Any) -> None:
    owner, norms = type(product).__name__, jax.tree.leaves(product.norms, is_leaf=_is_norm)
    wrong = [type(norm).__name__ for norm in norms if not _is_norm(norm)]
    if not norms or wrong:
        raise ValueError(
            f"`norms` of `{owner}` must be a pytree of norms such as `tw.SpectralNorm()`; "
            f"got {'an empty one' if not norms else f'one that holds {wrong[0]}'}."
        )
    weights = jax.tree.leaves(product.weights)
    if len(weights) > 1 and jax.tree.structure(product.weights) != jax.tree.structure(
        jax.tree.map(lambda _: 0, product.norms, is_leaf=_is_norm)
    ):
        raise ValueError(
            f"`weights` of `{owner}` must be one number or a pytree like `norms`; got {len(weights)} weights in "
            f"{jax.tree.structure(product.weights)} for {len(norms)} norms."
        )
    for weight in weights:
        if not _tree.is_traced(weight) and not (np.all(np.asarray(weight) > 0) and np.all(np.isfinite(weight))):
            raise ValueError(f"`weights` of `{owner}` must be positive and finite; got {weight}.")


def _check_parts(product: Any, state: State) -> None:
    owner = type(product).__name__
    try:
        parts = _parts(product, moving(state))
    except ValueError as error:
        raise ValueError(
            f"`norms` of `{owner}` must begin like the state, a norm for each leaf or sub-tree.\n"
            f"  norms: {jax.tree.structure(product.norms, is_leaf=_is_norm)}\n"
            f"  state: {jax.tree.structure(eqx.filter(state, eqx.is_array))}"
        ) from error
    for norm, _, part in parts:
        norm.check(part)
