"""The mean of a function over data, of which each step sees a random part."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, PRNGKey, PyTree, Scalar, ScalarLike, State
from thalweg.energies._base import AbstractEnergy

# Examples that are looked at together where all are: enough to fill a processor, and what memory must hold.
_BLOCK = 4096
# Floyd's draw takes b² comparisons, a shuffle sorts n keys. Measured on a CPU: 0.7e-9·b² s and 2e-6·n s.
_SORT_COSTS = 2000


def _as_arrays(data: PyTree) -> PyTree:
    try:
        return jax.tree.map(jnp.asarray, data)
    except TypeError as error:
        kinds = sorted({type(leaf).__name__ for leaf in jax.tree.leaves(data)})
        raise ValueError(f"`data` of `MiniBatch` must be made of arrays of numbers; got {kinds}.") from error


class MiniBatch(AbstractEnergy):
    r"""$F(x) = \frac1n\sum_{i=1}^n f(x, z_i)$, the mean over data, of which every step sees a random batch.

    A step takes the mean over $b$ examples drawn with its key, without replacement, so that energy and gradient are
    unbiased, with variance $\frac1b\left(1 - \frac{b-1}{n-1}\right)$ of the variance over the data. The batch is drawn
    once a step and stays the same throughout it: a line search or a proximal step that compared values on two batches
    would compare their noise. `path.energies` and the dissipation rates are those of all the data.

    **Arguments:** `fn`: $f(x, z)$, a function of the state and of *one* example that returns a scalar; `data`: the
    examples, an array or pytree of arrays with one leading axis of length $n$; `batch_size`: $b$, from 1 to $n$.

    **Call:** `state`; returns the mean over all data, shape `()`. It is taken in blocks, so that its memory does not
    grow with $n$.

    **Raises:** `ValueError` if the arrays have no common leading axis, or the batch is larger than the data; `flow`
    needs a `key`.

    **Source:** Robbins, Monro, Ann. Math. Statist. 22 (1951); the draw: Floyd, Comm. ACM 30 (1987).
    """

    fn: Callable[..., Any]
    data: PyTree = eqx.field(converter=_as_arrays)
    batch_size: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not callable(self.fn):
            raise TypeError(
                f"`fn` of `MiniBatch` must be a function of the state and one example; got {self.fn!r:.80}."
            )
        leaves = jax.tree.leaves(self.data)
        if not leaves or any(leaf.ndim == 0 for leaf in leaves) or len({leaf.shape[0] for leaf in leaves}) != 1:
            raise ValueError(
                "`data` of `MiniBatch` must be arrays with one leading axis, that of the examples; "
                f"got shapes {[leaf.shape for leaf in leaves]}."
            )
        if isinstance(self.batch_size, bool) or not isinstance(self.batch_size, int):
            raise ValueError(f"`batch_size` of `MiniBatch` must be an integer; got {self.batch_size!r}.")
        if not 1 <= self.batch_size <= self.num_examples:
            raise ValueError(
                f"`batch_size` of `MiniBatch` must lie between 1 and the number of examples, {self.num_examples}; "
                f"got {self.batch_size}."
            )

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def needs_key(self) -> bool:
        return True

    def __call__(self, state: State) -> Scalar:
        return _mean(self.fn, state, self.data)

    def at(self, time: ScalarLike, key: PRNGKey | None) -> AbstractEnergy:
        if key is None:
            raise ValueError(
                "`MiniBatch` draws a batch for every step and needs a `key`: pass `key=jax.random.key(0)`."
            )
        chosen = draw_without_replacement(key, self.num_examples, self.batch_size)
        return Batch(self.fn, jax.tree.map(lambda leaf: leaf[chosen], self.data))


class Batch(AbstractEnergy):
    """The mean over one batch: what a single step sees of a [`thalweg.MiniBatch`][]."""

    fn: Callable[..., Any]
    data: PyTree

    def __call__(self, state: State) -> Scalar:
        return _mean(self.fn, state, self.data)


def _mean(fn: Callable[..., Any], state: State, data: PyTree) -> Scalar:
    num_examples = jax.tree.leaves(data)[0].shape[0]
    value = lambda example: jnp.asarray(fn(state, example))  # noqa: E731
    if num_examples <= _BLOCK:
        values = jax.vmap(value)(data)
    else:
        # The way back computes a block again rather than keep what all of them left behind.
        values = jax.lax.map(jax.checkpoint(value), data, batch_size=_BLOCK)
    if values.ndim != 1:
        raise ValueError(
            f"`fn` of `MiniBatch` must return one number (shape ()) for one example; got shape {values.shape[1:]}."
        )
    return jnp.mean(values)


def draw_without_replacement(key: PRNGKey, num_examples: int, batch_size: int) -> Array:
    """A uniformly random set of `batch_size` different indices below `num_examples`, in no particular order."""
    if batch_size**2 > _SORT_COSTS * num_examples:
        return jax.random.permutation(key, num_examples)[:batch_size]
    # Floyd: for j = n−b … n−1 take a random number up to j, or j itself if that number has been taken.
    last = jnp.arange(num_examples - batch_size, num_examples)
    drawn = jax.random.randint(key, (batch_size,), 0, last + 1)

    def take(i: Any, chosen: Array) -> Array:
        return chosen.at[i].set(jnp.where(jnp.any(chosen == drawn[i]), last[i], drawn[i]))

    return jax.lax.fori_loop(0, batch_size, take, jnp.full((batch_size,), -1, drawn.dtype))
