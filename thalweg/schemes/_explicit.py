"""Explicit steps: F to first order, D to second."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg import _tree
from thalweg._first_variation import Cotangent, energy_and_first_variation, pairing
from thalweg._result import RESULTS
from thalweg._types import Array, Count, Flag, PRNGKey, PyTree, Scalar, ScalarLike, State
from thalweg.energies import AbstractEnergy
from thalweg.geometries import AbstractGeometry, AbstractMetric, admissibility_in
from thalweg.schemes._base import AbstractScheme, StepInfo, check_positive, limited_step_size
from thalweg.schemes._descent import Descent, check_descent, descend
from thalweg.states import moving


class Backtracking(eqx.Module):
    r"""A step size found by trial: halved until the state stays in its space and the energy falls by at least
    $c\,\alpha\|v\|^2$, doubled after each success.

    **Arguments:** `maximum`: the largest step size tried, also the first; `sufficient`: $c$, the share of the
    predicted decrease that is asked for
    (Armijo); `max_cuts`: after so many halvings in one step the run stops with a named result.

    **Source:** Nocedal, Wright, *Numerical Optimization* (2006), algorithm 3.1.
    """

    maximum: ScalarLike = 1.0
    sufficient: float = eqx.field(static=True, default=1e-4)
    max_cuts: int = eqx.field(static=True, default=60)

    def __check_init__(self) -> None:
        check_positive(self.maximum, "maximum", "Backtracking")


class ExplicitMemory(eqx.Module):
    """What explicit steps remember, `None` where there is nothing: the next step size that backtracking tries, how
    many steps a schedule has seen, and the leaves of the state of an optax transform.
    """

    trial: Scalar | None
    count: Count | None
    transform: tuple[Array, ...] | None


class CutSchedule(eqx.Module):
    """A schedule whose step must not pass the time that remains."""

    schedule: Any
    remaining: Scalar

    def __call__(self, count: Count) -> Scalar:
        return limited_step_size(jnp.asarray(self.schedule(count), self.remaining.dtype), self.remaining)


class Motion(NamedTuple):
    """How a direction was found, its speed ‖v‖², its slope −⟨ξ, v⟩ (the same, unless the gradient was transformed),
    the step size that is due, and what it leaves in the memory.
    """

    descent: Descent
    rate: Scalar
    slope: Scalar
    step_size: Scalar
    memory: ExplicitMemory


class Explicit(AbstractScheme):
    r"""$x^+ = \mathrm{move}(\alpha v)$ with $v$ the steepest descent direction at $x$: gradient descent, sign
    descent, natural gradient, mirror descent.

    On a grid with [`thalweg.Wasserstein`][] it is the article's $q^+ = q + \alpha\nabla\cdot(q\nabla\,\delta
    F/\delta q)$, stable only for step sizes below about $h^2/(2dT)$; a step that makes the density negative stops
    the run with a named result.

    With `transform`, an optax transform $T$, the step goes along the steepest descent direction of $T(\xi)$: momentum
    (`optax.trace`), clipping, Adam's scaling. It acts on the gradient, *before* the geometry: with the spectral norm
    `optax.trace(0.95, nesterov=True)` is then Muon. The energy need not fall; `dissipated` counts what the direction
    really promises, $-\alpha\langle\xi, v\rangle$, which may be negative.

    **Arguments:** `step_size`: $\alpha > 0$, in units of time; or a schedule, a function of the number of steps taken
    (any optax schedule); or `tw.Backtracking(...)`. `transform`: an `optax.GradientTransformation` that keeps the sign
    of the gradient, such as `optax.scale_by_adam()`; not an optimiser such as `optax.adam(1e-3)`, which turns it.

    First order in time. **Source:** Su (2023), the section on gradient descent.
    """

    step_size: Any
    transform: Any = None

    def __check_init__(self) -> None:
        check_positive(self.step_size, "step_size", "Explicit")
        if self.transform is None:
            return
        import optax  # not before it is used: it costs a quarter of a second

        if not isinstance(self.transform, optax.GradientTransformation):
            raise ValueError(
                "`transform` of `Explicit` must be an `optax.GradientTransformation` such as `optax.trace(0.9)`; "
                f"got {type(self.transform).__name__}."
            )
        if isinstance(self.step_size, Backtracking):
            raise ValueError(
                "`Backtracking` asks that the energy falls, which a transformed gradient does not promise.\n"
                "Give `Explicit` a number or a schedule as `step_size`, or no `transform`."
            )

    def init(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, key: PRNGKey | None) -> Any:
        trial = count = leaves = None
        if isinstance(self.step_size, Backtracking):
            trial = jnp.asarray(self.step_size.maximum, _tree.dtype_of(state))
        elif callable(self.step_size):
            count = jnp.asarray(0, jnp.int32)
        if self.transform is not None:
            # Leaves only: a file builds no class of another library.
            with _promotion_of_others():
                leaves = tuple(jnp.asarray(leaf) for leaf in jax.tree.leaves(self.transform.init(moving(state))))
        return ExplicitMemory(trial, count, leaves)

    def step(
        self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State, memory: Any, key: PRNGKey | None
    ) -> tuple[State, Any, StepInfo]:
        metric = geometry.at(state)
        value, cotangent = energy_and_first_variation(energy, state)
        motion = self.motion(metric, cotangent, memory, {"value": value, "grad": cotangent.regular})
        (velocity, stats, found), rate, slope, alpha, memory = motion
        if not isinstance(self.step_size, Backtracking):
            moved = metric.move(velocity, alpha)
            result = RESULTS.where(jnp.isfinite(value), found, RESULTS.non_finite)
            if callable(self.step_size):
                result = RESULTS.where(self._is_usable(alpha), result, RESULTS.unusable_step_size)
            return moved, memory, StepInfo(alpha, alpha**2 * rate, alpha * slope, result, stats)

        search = self.step_size

        def falls_enough(alpha: Scalar) -> Flag:
            # Near the minimum the decrease is below the rounding of F itself; that much is forgiven.
            rounding = 4 * jnp.finfo(value.dtype).eps * jnp.abs(value)
            trial = metric.move(velocity, alpha)
            # An energy may go on falling outside its space (a potential energy of a negative density does).
            inside = admissibility_in(geometry, trial) == RESULTS.successful
            return inside & (energy(trial) <= value - search.sufficient * alpha * rate + rounding)

        def cut(carry: tuple[Scalar, Flag, Count]) -> tuple[Scalar, Flag, Count]:
            alpha, _, cuts = carry
            return alpha / 2, falls_enough(alpha / 2), cuts + 1

        alpha, good, cuts = jax.lax.while_loop(
            lambda carry: ~carry[1] & (carry[2] < search.max_cuts), cut, (alpha, falls_enough(alpha), jnp.asarray(0))
        )
        result = RESULTS.where(good, found, RESULTS.step_size_underflow)
        result = RESULTS.where(jnp.isfinite(value), result, RESULTS.non_finite)
        moved = metric.move(velocity, alpha)
        memory = eqx.tree_at(lambda m: m.trial, memory, (2 * alpha).astype(memory.trial.dtype))
        return moved, memory, StepInfo(alpha, alpha**2 * rate, alpha * rate, result, {"cuts": cuts, **stats})

    def motion(
        self, metric: AbstractMetric, cotangent: Cotangent, memory: ExplicitMemory, known: dict[str, Any]
    ) -> Motion:
        """Where a step goes and how far, from the first variation alone; `known` is what a transform may ask for."""
        driving, leaves = self._transformed(metric.state, cotangent, memory.transform, known)
        descent = descend(metric, driving, jnp.asarray(known.get("value", 0.0)))
        velocity = descent.velocity
        rate = metric.norm_squared(velocity)
        slope = rate if self.transform is None else -pairing(cotangent, velocity)
        count = memory.count
        if isinstance(self.step_size, Backtracking):
            assert memory.trial is not None
            alpha = jnp.minimum(memory.trial, jnp.asarray(self.step_size.maximum, memory.trial.dtype))
        elif callable(self.step_size):
            assert count is not None
            with _promotion_of_others():
                # In JAX int32 divided by int32 is float32: a wider count keeps the digits of the schedule.
                alpha = jnp.asarray(self.step_size(count.astype(int)), rate.dtype)
            count = count + 1
        else:
            alpha = jnp.asarray(self.step_size, rate.dtype)
        return Motion(descent, rate, slope, alpha.astype(rate.dtype), ExplicitMemory(memory.trial, count, leaves))

    def _transformed(
        self, state: State, cotangent: Cotangent, leaves: tuple[Array, ...] | None, known: dict[str, Any]
    ) -> tuple[Cotangent, tuple[Array, ...] | None]:
        if self.transform is None or leaves is None:
            return cotangent, leaves
        free = moving(state)
        structure = jax.tree.structure(eqx.filter_eval_shape(self.transform.init, free))
        regular, after = _update(self.transform, cotangent.regular, jax.tree.unflatten(structure, leaves), free, known)
        regular = jax.tree.map(lambda new, old: new.astype(old.dtype), regular, cotangent.regular)
        return eqx.tree_at(lambda c: c.regular, cotangent, regular), tuple(map(jnp.asarray, jax.tree.leaves(after)))

    def _is_usable(self, alpha: Scalar) -> Flag:
        # A step of no length would never reach a final time; without one a schedule may begin or end at zero.
        large_enough = alpha > 0 if isinstance(self.step_size, CutSchedule) else alpha >= 0
        return jnp.isfinite(alpha) & large_enough

    def check(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> None:
        check_descent(energy, geometry, state)
        if callable(self.step_size):
            check_schedule(self.step_size, "step_size", "Explicit")
        if self.transform is not None:
            check_transform(self.transform, moving(state))

    def resolve(self, energy: AbstractEnergy, geometry: AbstractGeometry, state: State) -> "Explicit":
        return self

    def limit(self, remaining: Scalar) -> "Explicit":
        if isinstance(self.step_size, Backtracking):
            maximum = jnp.asarray(self.step_size.maximum, remaining.dtype)
            return eqx.tree_at(lambda s: s.step_size.maximum, self, limited_step_size(maximum, remaining))
        if callable(self.step_size):
            return Explicit(CutSchedule(self.step_size, remaining), self.transform)
        step_size = jnp.asarray(self.step_size, remaining.dtype)
        return eqx.tree_at(lambda s: s.step_size, self, limited_step_size(step_size, remaining))

    def describe(self) -> dict[str, str]:
        if isinstance(self.step_size, Backtracking):
            return {"step_size": "found by backtracking (Armijo)"}
        if self.transform is not None:
            return {"transform": "the gradient is transformed before the geometry sees it; the energy need not fall"}
        return {}


def _promotion_of_others() -> Any:
    # Code of others counts on JAX's usual promotion (float times int32), whatever the user has set for their own.
    return jax.numpy_dtype_promotion("standard")


def _update(transform: Any, gradient: PyTree, state: PyTree, params: PyTree, known: dict[str, Any]) -> Any:
    import optax

    with _promotion_of_others():
        return optax.with_extra_args_support(transform).update(gradient, state, params, **known)


def check_schedule(schedule: Callable[..., Any], name: str, owner: str) -> None:
    """Raise `ValueError` unless a schedule gives one real number for each count, not negative where it is looked at:
    the first thousand steps and every power of two.
    """
    try:
        with _promotion_of_others():
            out = jax.eval_shape(lambda: schedule(jnp.asarray(0)))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:150]
        raise ValueError(
            f"The schedule `{name}` of `{owner}` failed for a step count: {type(error).__name__}: {reason}\n"
            "It must take the number of steps taken (an integer array of shape ()) and be written with jax.numpy."
        ) from error
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"The schedule `{name}` of `{owner}` must return one real number (shape ()); got "
            f"{getattr(out, 'shape', type(out).__name__)} {getattr(out, 'dtype', '')}."
        )
    counts = np.unique(np.concatenate([np.arange(1000), 2 ** np.arange(31) - 1]))
    with jax.ensure_compile_time_eval(), _promotion_of_others():
        values = jax.vmap(lambda count: jnp.asarray(schedule(count)))(jnp.asarray(counts))
    if _tree.is_traced(values):
        return
    values = np.asarray(values)
    bad = ~(np.isfinite(values) & (values >= 0))
    if np.any(bad):
        raise ValueError(
            f"The schedule `{name}` of `{owner}` must be finite and not negative; after {counts[bad][0]} steps it is "
            f"{values[bad][0]}."
        )


def check_transform(transform: Any, free: PyTree) -> None:
    """Raise `ValueError` unless a transform keeps the shapes and does not turn the sign of a gradient of ones."""
    with jax.ensure_compile_time_eval():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), free)
        ones = jax.tree.map(jnp.ones_like, zeros)
        known = {"value": jnp.zeros((), _tree.dtype_of(free)), "grad": ones}
        try:
            out, _ = _update(transform, ones, transform.init(zeros), zeros, known)
            same = jax.tree.map(lambda a, b: a.shape == b.shape, out, ones)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:150]
            raise ValueError(
                f"`transform` failed when it was tried on the shapes of `initial_state`: {type(error).__name__}: "
                f"{reason}"
            ) from error
        if not all(jax.tree.leaves(same)):
            raise ValueError("`transform` must return a gradient of the shapes that it is given.")
        along = _tree.total(jax.tree.map(lambda a: jnp.sum(a), out))
    if not _tree.is_traced(along) and float(along) < 0:
        raise ValueError(
            "`transform` turns the sign of the gradient, so the flow would climb; it looks like a whole optimiser.\n"
            "Give the part before the learning rate, e.g. `optax.scale_by_adam()` for `optax.adam(1e-3)` or\n"
            "`optax.trace(0.9)` for `optax.sgd(1e-3, momentum=0.9)`; the learning rate is `step_size`."
        )
