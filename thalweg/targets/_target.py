"""A distribution known through its log density, up to a constant."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._types import Array


class Target(eqx.Module):
    r"""A distribution $p$ on $\mathbb R^{\mathrm{dim}}$, known by $\log p$ up to an additive constant.

    **Arguments:** `log_density`: a function of one point, an array of shape `(dim,)`, that returns $\log p(x) + c$
    as a scalar; `dim`: the dimension. The function is tried at once (by shapes only, nothing is computed).

    **Raises:** `ValueError` if `log_density` does not accept a point of shape `(dim,)` or does not return one real
    number.
    """

    log_density: Callable[..., Any]
    dim: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"`dim` of a target must be a positive integer; got {self.dim!r}.")
        check_point_function(self.log_density, self.dim, "log_density")

    def potential(self, point: Array) -> Array:
        r"""$V(x) = -\log p(x)$, up to a constant; shape `()`."""
        return -self.log_density(point)


class Samples(eqx.Module):
    r"""A distribution known only by samples $y_1, \dots, y_n$ drawn from it.

    **Arguments:** `values`: shape `(num_samples, dim)`, finite.
    """

    values: Array

    def __check_init__(self) -> None:
        if _tree.is_traced(self.values):
            return
        if self.values.ndim != 2 or not np.all(np.isfinite(np.asarray(self.values))):
            raise ValueError(
                f"`Samples` needs finite values of shape (num_samples, dim); got shape {self.values.shape}"
                + ("." if self.values.ndim != 2 else " with NaN or infinity in it.")
            )


def check_point_function(fn: Callable[..., Any], dim: int, name: str) -> None:
    """Check by shapes alone that `fn` maps one point of shape `(dim,)` to one real number."""
    if not callable(fn):
        raise ValueError(f"`{name}` must be a function of one point of shape ({dim},); got {type(fn).__name__}.")
    point = jax.ShapeDtypeStruct((dim,), jnp.zeros(()).dtype)
    try:
        out = eqx.filter_eval_shape(fn, point)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"`{name}` must accept one point, an array of shape ({dim},), written with jax.numpy; calling it failed:\n"
            f"  {type(error).__name__}: {reason[0][:200]}"
        ) from error
    shape = getattr(out, "shape", None)
    if shape != () and not isinstance(out, int | float):
        got = f"an array of shape {shape}" if shape is not None else type(out).__name__
        raise ValueError(
            f"`{name}` must return one real number (an array of shape ()) for one point of shape ({dim},); got {got}.\n"
            "It is vectorised by the library: write it for one point, and end it with `jnp.sum(...)` if it "
            "has several terms."
        )
