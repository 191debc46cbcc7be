r"""Geometries for optimistix.

optimistix splits a minimiser into a *descent* (which way, given how far) and a *search* (how far). A geometry gives
two descents, as it gives two schemes: `ExplicitDescent` goes $\alpha v$ for a step size $\alpha$, `ConstrainedDescent`
goes to the steepest point at distance $\alpha$. Either works with every search that needs no more than gradients, and
with those that use a Hessian where the minimiser has one.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx

from thalweg._types import PyTree, Scalar, State
from thalweg.geometries import AbstractGeometry
from thalweg.interop._parameters import cotangent_of, displacement, like, state_of, unit_scale


class DescentState(eqx.Module):
    """The point where the direction was asked for, and the direction."""

    point: PyTree
    velocity: Any


class AbstractGeometryDescent(optx.AbstractDescent):
    """What the two descents share: the direction is the geometry's, found once where the search stands."""

    geometry: eqx.AbstractVar[AbstractGeometry]
    at: eqx.AbstractVar[Callable[[PyTree], State] | None]

    @abc.abstractmethod
    def step(self, step_size: Scalar, state: DescentState) -> tuple[PyTree, optx.RESULTS]:
        """The displacement for a step size."""

    def init(self, y: PyTree, f_info_struct: optx.FunctionInfo) -> DescentState:
        """A state of the right shapes; the first query fills it."""
        shapes = eqx.filter_eval_shape(self._directed, y, y)
        zeros = jax.tree.map(_zeros, shapes)
        return DescentState(y, zeros)

    def query(self, y: PyTree, f_info: optx.FunctionInfo, state: DescentState) -> DescentState:
        """The steepest descent direction at `y`."""
        if isinstance(f_info, optx.FunctionInfo.ResidualJac):
            gradient = f_info.compute_grad()
        elif isinstance(
            f_info,
            optx.FunctionInfo.EvalGrad | optx.FunctionInfo.EvalGradHessian | optx.FunctionInfo.EvalGradHessianInv,
        ):
            gradient = f_info.grad
        else:
            raise ValueError(
                f"`{type(self).__name__}` needs gradients, and this optimistix solver gives it "
                f"`{type(f_info).__qualname__}`.\nUse a solver that evaluates gradients, such as `tw.GeometricDescent`."
            )
        return DescentState(y, self._directed(y, gradient))

    def _directed(self, y: PyTree, gradient: PyTree) -> Any:
        state = state_of(y, self.at)
        return self.geometry.at(state).steepest_descent(cotangent_of(gradient, state))


class ExplicitDescent(AbstractGeometryDescent):
    r"""$y^+ = \mathrm{move}(\alpha v)$ with $v$ the steepest descent direction of the geometry, as a descent of
    optimistix.

    **Arguments:** `geometry`: any geometry; `at`: makes of the unknowns the state whose metric is meant, for example
    `lambda y: tw.Parametric(y, family)` (`None`: the unknowns themselves).
    """

    geometry: AbstractGeometry
    at: Callable[[PyTree], State] | None = None

    def step(self, step_size: Scalar, state: DescentState) -> tuple[PyTree, optx.RESULTS]:
        metric = self.geometry.at(state_of(state.point, self.at))
        return like(state.point, displacement(metric, state.velocity, step_size)), optx.RESULTS.successful


class ConstrainedDescent(AbstractGeometryDescent):
    r"""$y^+ = \mathrm{move}(\alpha v/\|v\|)$: of all points at distance $\alpha$ the steepest, to first order, as a
    descent of optimistix.

    In the maximum norm the slope is $-\|g\|_1$. (`optimistix.SteepestDescent(norm=...)` keeps the direction of the
    Euclidean gradient and only gives it length $\alpha$ in the norm: slope $-\|g\|_2^2/\|g\|_\infty$.)

    **Arguments:** as [`thalweg.ExplicitDescent`][].
    """

    geometry: AbstractGeometry
    at: Callable[[PyTree], State] | None = None

    def step(self, step_size: Scalar, state: DescentState) -> tuple[PyTree, optx.RESULTS]:
        metric = self.geometry.at(state_of(state.point, self.at))
        scale = unit_scale(metric, state.velocity)
        moved = displacement(metric, state.velocity, scale * step_size.astype(scale.dtype))
        return like(state.point, moved), optx.RESULTS.successful


class GeometricDescent(optx.AbstractGradientDescent):
    """Descent in a chosen geometry as a minimiser of optimistix: `optx.minimise(fn, tw.GeometricDescent(geometry,
    rtol=1e-8, atol=1e-8), y0)`.

    **Arguments:** `geometry`: any geometry; `rtol`, `atol`: optimistix's tolerances on the last change of the unknowns
    and of the value; `search`: any search of optimistix that needs gradients only (`None`: backtracking, Armijo);
    `norm`: in which the change is measured; `at`: as in [`thalweg.ExplicitDescent`][].
    """

    rtol: float
    atol: float
    norm: Callable[..., Any]
    descent: AbstractGeometryDescent
    search: optx.AbstractSearch

    def __init__(
        self,
        geometry: AbstractGeometry,
        rtol: float,
        atol: float,
        *,
        search: optx.AbstractSearch | None = None,
        norm: Callable[..., Any] = optx.max_norm,
        at: Callable[[PyTree], State] | None = None,
    ):
        if not isinstance(geometry, AbstractGeometry):
            raise TypeError(f"`geometry` must be a geometry such as `tw.MaxNorm()`; got {geometry!r:.80}.")
        self.rtol = rtol
        self.atol = atol
        self.norm = norm
        self.descent = ExplicitDescent(geometry, at)
        self.search = optx.BacktrackingArmijo() if search is None else search


def _zeros(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
