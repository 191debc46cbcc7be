r"""Geometries for optax.

In optax the pieces of an optimiser (`scale_by_...`) hand on something that still points *up* like a gradient, and
`optax.scale_by_learning_rate` turns it at the end; a whole optimiser hands on what is *added* to the parameters. The
same here: `scale_by_geometry` and `scale_by_unit_ball` give $-v$ and $-v/\|v\|$ for use inside `optax.chain`;
`as_optax` gives $x^+ - x$.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from thalweg import _tree
from thalweg._errors import UnsupportedCombination
from thalweg._types import PyTree, State
from thalweg.energies import Zero
from thalweg.geometries import AbstractGeometry, AbstractMetric
from thalweg.interop._parameters import cotangent_of, displacement, like, state_for, state_of, unit_scale
from thalweg.schemes import AbstractScheme, Backtracking, Constrained, Explicit


def scale_by_geometry(
    geometry: AbstractGeometry, *, at: Callable[[PyTree], State] | None = None
) -> optax.GradientTransformation:
    r"""The gradient as the geometry sees it: $g \mapsto -v$ with $v = \operatorname{argmin}_v \langle g, v\rangle +
    \tfrac12\|v\|^2$, to be put into `optax.chain`.

    It keeps the sign of the gradient, as every `scale_by_...` of optax does: `optax.chain(optax.trace(0.9),
    tw.scale_by_geometry(tw.MaxNorm()), optax.scale_by_learning_rate(1e-3))` descends. The update is $\alpha v$ in the
    coordinates of the parameters; for moves that are curved, so that they stay in their space, use
    [`thalweg.as_optax`][].

    **Arguments:** `geometry`: any geometry; `at`: makes of the parameters the state whose metric is meant, for example
    `lambda params: tw.Parametric(params, family)` for [`thalweg.FisherRao`][] (`None`: the parameters themselves).

    **Returns:** an `optax.GradientTransformation` without memory; `update(gradient, state, params)` needs `params`
    unless the geometry is a norm.
    """
    return _linear(geometry, at, lambda metric, velocity: -1.0)


def scale_by_unit_ball(
    geometry: AbstractGeometry, *, at: Callable[[PyTree], State] | None = None
) -> optax.GradientTransformation:
    r"""The gradient, replaced by the steepest of all directions of length one: $g \mapsto -\operatorname{argmin}_{\|u\|
    \le 1}\langle g, u\rangle = -v/\|v\|$, to be put into `optax.chain`.

    In the maximum norm it is the sign (`optax.scale_by_sign`), in the spectral norm the polar factor (Muon's
    direction). A zero gradient gives zero. It keeps the sign of the gradient, see [`thalweg.scale_by_geometry`][].

    **Arguments, returns:** as [`thalweg.scale_by_geometry`][].
    """
    return _linear(geometry, at, lambda metric, velocity: -unit_scale(metric, velocity))


def as_optax(
    geometry: AbstractGeometry, scheme: AbstractScheme, *, at: Callable[[PyTree], State] | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""A geometry and a scheme as a whole optimiser of optax: the update is $x^+ - x$, to be added to the parameters.

    The step is the scheme's own, along the geometry's own curve: for a Bregman geometry it is mirror descent and stays
    in its domain. `tw.as_optax(tw.SpectralNorm(), tw.Explicit(0.02, transform=optax.trace(0.95, nesterov=True)))`.

    **Arguments:** `geometry`: any geometry; `scheme`: [`thalweg.Explicit`][] with a number or a schedule as step size
    and any transform, or [`thalweg.Constrained`][] without a solver; others need more than a gradient; `at`: as in
    [`thalweg.scale_by_geometry`][].

    **Returns:** an `optax.GradientTransformationExtraArgs`; `update(gradient, state, params)` needs `params` unless
    the geometry is a norm and there is no transform.

    **Raises:** `UnsupportedCombination` for a scheme that needs more than a gradient.
    """
    _check(geometry)
    first_order = isinstance(scheme, Explicit) and not isinstance(scheme.step_size, Backtracking)
    first_order = first_order or (isinstance(scheme, Constrained) and scheme.solver is None)
    if not first_order:
        raise UnsupportedCombination(
            f"`as_optax` takes schemes that need one gradient a step; got {scheme!r:.120}.\n"
            "Use `tw.Explicit` with a number or a schedule, or `tw.Constrained`; others run in `tw.flow`."
        )

    def init(params: PyTree) -> Any:
        state = state_of(params, at)
        geometry.at(state)
        # These schemes look at the shapes of the state only.
        return scheme.init(Zero(), geometry, state, None)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if params is None and isinstance(scheme, Explicit) and scheme.transform is not None:
            raise ValueError("A `transform` may need the parameters: call `update(gradient, state, params)`.")
        metric = geometry.at(state_for(geometry, updates, params, at))
        cotangent = cotangent_of(updates, metric.state)
        if isinstance(scheme, Explicit):
            motion = scheme.motion(metric, cotangent, state, {**extra_args, "grad": cotangent.regular})
            moved = displacement(metric, motion.descent.velocity, motion.step_size)
            return like(updates, moved), motion.memory
        assert isinstance(scheme, Constrained)
        velocity = metric.steepest_descent(cotangent)
        scale = unit_scale(metric, velocity)
        return like(updates, displacement(metric, velocity, scale * jnp.asarray(scheme.radius, scale.dtype))), state

    return optax.GradientTransformationExtraArgs(init, update)


def _linear(
    geometry: AbstractGeometry, at: Callable[..., Any] | None, factor: Callable[[AbstractMetric, Any], Any]
) -> optax.GradientTransformation:
    _check(geometry)

    def init(params: PyTree) -> optax.EmptyState:
        geometry.at(state_of(params, at))
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        metric = geometry.at(state_for(geometry, updates, params, at))
        velocity = metric.steepest_descent(cotangent_of(updates, metric.state))
        return like(updates, _tree.scale_by(velocity.tangent, factor(metric, velocity))), state

    return optax.GradientTransformation(init, update)


def _check(geometry: Any) -> None:
    if not isinstance(geometry, AbstractGeometry):
        raise TypeError(f"`geometry` must be a geometry such as `tw.MaxNorm()`; got {geometry!r:.80}.")
