"""How far is far: a geometry, and the metric that it makes at one state.

A metric must give three things: the direction of steepest descent, the norm of a velocity, and the curve along a
velocity that stays in the space. Everything else is a capability, `None` where absent, which schemes and the checker
read.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._first_variation import Cotangent, Velocity, pairing
from thalweg._result import RESULTS
from thalweg._types import Array, Scalar, ScalarLike, State
from thalweg.states import AbstractState, admissibility


class Accuracy(NamedTuple):
    """How well a direction solves the equations of its metric: the size of what they leave, the size of the gradient,
    both in coordinates of unit metric, and which part of it may be left.
    """

    residual: Scalar
    size: Scalar
    tolerance: float

    @property
    def relative(self) -> Scalar:
        """The residual as a part of the gradient; zero at a zero gradient."""
        return self.residual / jnp.where(self.size > 0, self.size, 1)


class AbstractMetric(eqx.Module):
    r"""The inner product (or norm) of a geometry at one state.

    Capabilities, `None` where absent: `distance_squared(other)`, normalised so that $D(x + \varepsilon v,
    x)/\varepsilon^2 \to \|v\|^2$, with `distance_kind` ("exact", "upper bound" or "local") and `distance_is_smooth`;
    `noise(key)`, a velocity drawn from $N(0, G^{-1})$ in the coordinates of the state; `matrix()`, the Gram matrix
    $G$ in flat coordinates; `chart(coordinates)`, a parametrisation of the space around the state by a pytree like
    `moving(state)`, zero at the state, that solvers may minimise over; `checked_descent(cotangent)`, where steepest
    descent may not exist or not be found: the direction and its `Accuracy`.

    For motion with inertia, at most one of: `is_constant`, the norm is the same at every point and `move` is straight;
    `is_riemannian`, it is an inner product that changes with the point, and both are differentiable in the coordinates
    of the state; `free_motion(momentum, duration)`, geodesics in closed form: the point and the momentum after a time
    (cotangents, as their regular parts), and whether the geodesic reaches that far.
    """

    state: eqx.AbstractVar[State]

    distance_squared: ClassVar[Callable[..., Any] | None] = None
    distance_kind: ClassVar[str | None] = None
    distance_is_smooth: ClassVar[bool] = True
    noise: ClassVar[Callable[..., Any] | None] = None
    matrix: ClassVar[Callable[..., Any] | None] = None
    chart: ClassVar[Callable[..., Any] | None] = None
    checked_descent: ClassVar[Callable[..., Any] | None] = None
    is_constant: ClassVar[bool] = False
    is_riemannian: ClassVar[bool] = False
    free_motion: ClassVar[Callable[..., Any] | None] = None

    def describe(self) -> dict[str, str]:
        """The choices that the metric made automatically, by name, for `path.stats`."""
        return {}

    @abc.abstractmethod
    def steepest_descent(self, cotangent: Cotangent) -> Velocity:
        r"""$\operatorname{argmin}_v \langle\xi, v\rangle + \tfrac12\|v\|^2$."""

    @abc.abstractmethod
    def norm_squared(self, velocity: Velocity) -> Scalar:
        r"""$\|v\|^2$, the dissipation rate along steepest descent."""

    @abc.abstractmethod
    def move(self, velocity: Velocity, scale: ScalarLike) -> State:
        """The point at parameter `scale` of a curve through the state with this velocity."""

    def dual_norm(self, cotangent: Cotangent) -> Scalar:
        r"""$\|\xi\|_* = \max_{\|v\| \le 1}\langle\xi, v\rangle$, whose square is the dissipation rate."""
        slope = -pairing(cotangent, self.steepest_descent(cotangent))
        return jnp.sqrt(jnp.where(slope > 0, slope, 0))

    def lmo(self, cotangent: Cotangent) -> Velocity:
        r"""The linear minimisation oracle $\operatorname{argmin}_{\|v\| \le 1}\langle\xi, v\rangle$: of length one, and
        zero at a zero cotangent.
        """
        # Steepest descent is homogeneous, and a velocity is more than a tangent: the cotangent is scaled, not it.
        dual = self.dual_norm(cotangent)
        scaled = _tree.scale_by(cotangent.regular, 1 / jnp.where(dual > 0, dual, 1))
        return self.steepest_descent(eqx.tree_at(lambda c: c.regular, cotangent, scaled))


class AbstractGeometry(eqx.Module):
    """How far is far; `geometry.at(state)` is its metric there.

    A capability, `None` where absent: `in_domain(state)`, a boolean array that says whether a vector lies where the
    geometry is defined.
    """

    in_domain: ClassVar[Callable[..., Any] | None] = None

    @abc.abstractmethod
    def at(self, state: State, memory: Any = None) -> AbstractMetric:
        """The metric at a state; `memory` may carry what an earlier step prepared."""


def admissibility_in(geometry: AbstractGeometry, state: State) -> Any:
    """`RESULTS.successful`, or why the state has left its space or the domain of the geometry."""
    result = admissibility(state)
    if geometry.in_domain is None:
        return result
    inside = RESULTS.where(geometry.in_domain(state), RESULTS.successful, RESULTS.left_domain)
    return RESULTS.where(result == RESULTS.successful, inside, result)


def unsupported_state(geometry: Any, state: Any, registered: list[str]) -> UnsupportedCombination:
    """The error of a geometry that has no metric for a representation."""
    name = type(geometry).__name__
    given = type(state).__name__ if isinstance(state, AbstractState) else "a plain vector or pytree"
    return UnsupportedCombination(
        f"`{name}` has no metric at {given}; it is defined at: {', '.join(registered)}.\n"
        "`thalweg combinations` lists what works with what."
    )


def require_resolved(cotangent: Cotangent, who: str) -> None:
    """Raise if the cotangent still holds a symbolic entropy, which a deterministic velocity would lose."""
    if cotangent.temperature is not None:
        raise UnsupportedCombination(
            f"{who} needs the gradient of the entropy, which particles without a density model do not have.\n"
            "Give them one, `tw.Particles(positions, density=tw.KernelDensity())`, or play the entropy by noise: "
            "`scheme=tw.Langevin(step_size)`."
        )


def flat_quadratic(matrix: Array, vector: Array) -> Scalar:
    """$v^T G v$."""
    return vector @ (matrix @ vector)
