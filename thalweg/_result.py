"""Why a flow ended: one whole sentence for each way."""

import functools
from typing import Any

import equinox as eqx
import numpy as np


class RESULTS(eqx.Enumeration):
    """How a flow ended. `path.result == tw.RESULTS.successful` compares; `path.message` is the sentence."""

    successful = "The flow reached its last step or its final time."
    stopped = "The flow stopped because the given `stop` condition became true."
    minimum = (
        "The flow reached a minimum: what the quadratic model still promises is lost in rounding (or below the "
        "tolerance), and the smallest curvature is positive."
    )
    saddle_point = (
        "The flow reached a stationary point that is not a minimum: the smallest curvature there is negative, or zero "
        "to rounding with an energy that falls further away."
    )
    flat_point = (
        "The flow reached a point where the quadratic model promises nothing more, but does not tell whether it is a "
        "minimum: the smallest curvature is zero to rounding, is not known well enough, or is not that of the energy "
        "a little further away."
    )
    escaping = (
        "The energy flattens while the state moves away: ahead it never rises again, as far as it was followed along a "
        "line. Its infimum seems to lie at infinity, and there is no minimum here."
    )
    unbounded = (
        "The energy falls without bound, as far as it was followed along a line: it has no minimum. "
        "Check its sign, or add what should hold the state (`lower`, `upper`, `plus`, a penalty)."
    )
    corner = (
        "The steps are held where the slope of the energy jumps: a quadratic model says nothing across a corner, which "
        "may or may not be a minimum. A penalty with a proximal map (`plus=tw.L1(...)`) knows its corners."
    )
    out_of_steps = (
        "All `num_steps` were taken before the tolerance was reached: the state is the best found, not a stationary "
        "point. Use a larger `num_steps`."
    )
    non_finite = (
        "A step produced NaN or infinity; the last finite state is kept. "
        "Use a smaller step size, or check the energy at `path.final.state`."
    )
    negative_density = (
        "An explicit step made the density negative; the last good state is kept. "
        "Explicit steps on a grid need a step size below about h²/(2·dim·temperature); "
        "use a smaller one, or `tw.Continuous` or `tw.Proximal`, which have no such limit."
    )
    concentrated = (
        "The density has gathered in so few cells that the grid no longer resolves it (one holds half of the "
        "mass): it collapses, or its limit is a point mass. The last resolved state is kept. Use a finer grid to "
        "follow it longer, less attraction, or more diffusion."
    )
    left_domain = (
        "A step left the space in which the state lives; the last good state is kept. Use a smaller step size."
    )
    inner_solver_failed = (
        "The solver inside a step did not converge; the last good state is kept. "
        "Use a smaller step size, a looser tolerance or another solver; `path.stats` says which was chosen, and why."
    )
    energy_increased = (
        "A proximal step found no state that satisfies F(x⁺) + D(x⁺, x)/(2α) ≤ F(x); the last good state is kept. "
        "Use a smaller step size or another solver."
    )
    step_size_underflow = (
        "The step size was cut so often that it no longer changes the state; the last good state is kept. "
        "The energy may be non-smooth or non-finite nearby, or the state may be a minimum to rounding."
    )
    unusable_step_size = (
        "The schedule of step sizes gave a number that is negative or not finite, or came to zero before `final_time`; "
        "the last good state is kept. Use a schedule that stays positive, or `num_steps` where it ends at zero."
    )
    unsolved_metric = (
        "There is no direction of steepest descent to the accuracy asked for: the Fisher matrix is singular along the "
        "gradient, or needs more products than its conjugate gradients may take; the last good state is kept. Use "
        "`damping`, another `solver`, or `tw.MatrixFreeFisher(max_steps=...)` to take what so many products find."
    )
    interrupted = "The flow was interrupted from the keyboard; everything up to the last good state is kept."


def member(number: int) -> Any:
    """The member with this number, as a compiled function returns it."""
    return _members()[number]


def name_of(result: Any) -> str:
    """The name of one result: `"minimum"` for `RESULTS.minimum`."""
    return _names()[int(np.asarray(result._value))]


@functools.cache
def _names() -> dict[int, str]:
    items = RESULTS._name_to_item.items()  # pyright: ignore
    return {int(np.asarray(item._value)): name for name, item in items}


@functools.cache
def _members() -> dict[int, Any]:
    items = RESULTS._name_to_item.values()  # pyright: ignore
    return {int(np.asarray(item._value)): item for item in items}


def sentence(result: Any) -> str:
    """The sentence of a result, or those of many."""
    if np.ndim(result._value):
        return str(RESULTS[result])
    return _sentences()[int(np.asarray(result._value))]


@functools.cache
def _sentences() -> dict[int, str]:
    return {number: str(RESULTS[item]) for number, item in _members().items()}


def is_member(result: Any, member: Any) -> bool:
    """Whether a result that is known is this member: `==` without asking the device."""
    return int(np.asarray(result._value)) == int(np.asarray(member._value))


def ended_well(result: Any) -> bool:
    """Whether a flow did what it was asked to: it reached its end, its stop condition or a stationary point."""
    good = (RESULTS.successful, RESULTS.stopped, RESULTS.minimum, RESULTS.saddle_point, RESULTS.flat_point)
    return any(is_member(result, member) for member in good)
