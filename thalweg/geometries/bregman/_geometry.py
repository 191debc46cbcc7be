r"""Bregman geometries: the distance is what a convex function $h$ loses against its tangent plane.

$D(y, x) = 2[h(y) - h(x) - \langle\nabla h(x), y - x\rangle]$, so $\|v\|_x^2 = \langle\nabla^2 h(x)v, v\rangle$ and
steepest descent is $v = -(\nabla^2 h)^{-1}\xi$. Moves are straight in the dual coordinates $\theta = \nabla h(x)$:
$\mathrm{move}(\alpha v) = \nabla h^*(\nabla h(x) + \alpha\nabla^2 h(x)v)$; with $v$ the steepest descent that is
$\nabla h^*(\nabla h(x) - \alpha\xi)$, the mirror step. A velocity carries its dual $\nabla^2 h(x)v$ as its field, so
that the mirror step needs no Hessian.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from thalweg import _tree
from thalweg._first_variation import Cotangent, Velocity
from thalweg._types import Array, Flag, Scalar, ScalarLike, State
from thalweg.geometries._base import AbstractGeometry, AbstractMetric, unsupported_state
from thalweg.geometries.bregman._base import AbstractLegendre
from thalweg.geometries.bregman._legendre import as_legendre
from thalweg.states import AbstractState


class Bregman(AbstractGeometry):
    r"""$D(y, x) = 2[h(y) - h(x) - \langle\nabla h(x), y - x\rangle]$ with a convex function $h$: `Explicit` is mirror
    descent, `Proximal` the Bregman proximal step, `Continuous` the flow $\frac{\mathrm d}{\mathrm dt}\nabla h(x) =
    -\nabla F$.

    The state stays in the domain of $h$; a step that has no end point there stops the run with `RESULTS.left_domain`.

    **Arguments:** `h`: `tw.OrthantEntropy()`, `tw.SimplexEntropy()`, `tw.BurgEntropy()`, `tw.LogDeterminant()`,
    `tw.SquaredPNorm(p)`, or any convex function of the state (as it is, or as [`thalweg.Legendre`][]).

    **Raises:** `TypeError` if `h` is not a function; `ValueError` for a state outside its domain.

    **Source:** Nemirovski, Yudin, *Problem complexity and method efficiency in optimization* (1983); Beck, Teboulle
    (2003).
    """

    h: AbstractLegendre = eqx.field(converter=as_legendre)

    def at(self, state: State, memory: Any = None) -> "BregmanMetric":
        if isinstance(state, AbstractState):
            raise unsupported_state(self, state, ["vectors and pytrees of arrays"])
        inside = self.h.contains(state)
        if not _tree.is_traced(inside) and not bool(inside):
            raise ValueError(
                f"The state must {self.h.domain}, for `Bregman({type(self.h).__name__}())`;\ngot {_brief(state)}."
            )
        return BregmanMetric(state, self.h)

    def in_domain(self, state: State) -> Flag:
        return self.h.contains(state)


class BregmanMetric(AbstractMetric):
    """The metric of a Bregman geometry at a state."""

    state: State
    h: AbstractLegendre

    distance_kind = "exact"

    @property
    def matrix(self) -> Any:
        """The Hessian of h in flat coordinates, shape `(n, n)`; `None` on the simplex, whose tangents have sum zero."""
        return self._hessian if self.h.has_matrix else None

    def _hessian(self) -> Array:
        return hessian_matrix(self.h, self.state)

    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        upward = self.h.solve_hessian(self.state, cotangent.regular)
        return Velocity(_tree.scale_by(upward, -1), _tree.scale_by(cotangent.regular, -1))

    def norm_squared(self, velocity: Velocity) -> Scalar:
        return _tree.dot(self.h.apply_hessian(self.state, velocity.tangent), velocity.tangent)

    def move(self, velocity: Velocity, scale: ScalarLike) -> State:
        dual = velocity.field
        if dual is None:
            dual = self.h.apply_hessian(self.state, velocity.tangent)
        moved = _tree.multiply_add(self.h.gradient(self.state), scale, dual)
        return self.h.conjugate_gradient(moved, self.state)

    def distance_squared(self, other: State) -> Scalar:
        return 2 * self.h.divergence(other, self.state)

    def chart(self, coordinates: Any) -> State:
        return self.h.chart(self.state, coordinates)


def hessian_matrix(h: AbstractLegendre, state: State) -> Array:
    """The Hessian of h in flat coordinates, shape `(n, n)`."""
    flat, unravel = ravel_pytree(state)
    columns = jax.vmap(lambda v: ravel_pytree(h.apply_hessian(state, unravel(v)))[0])
    return columns(jnp.eye(flat.size, dtype=flat.dtype))


def _brief(state: State) -> str:
    leaves = [leaf for leaf in jax.tree.leaves(state) if eqx.is_array(leaf)]
    smallest = min(float(jnp.min(leaf)) for leaf in leaves)
    return f"arrays of shapes {[leaf.shape for leaf in leaves]}, smallest entry {smallest:.4g}"
