r"""The minimiser of a quadratic model plus a proximable energy: Newton on the piece where the solution lies.

With $q(u) = \langle c, u\rangle + \tfrac12\langle u, Bu\rangle$ a forward–backward step $T(u) =
\operatorname{prox}_{\gamma g}(v)$, $v = u - \gamma\nabla q(u)$, tells which bounds hold and which entries are zero: the
derivative P of the proximal map is (nearly) the projection onto the piece on which g is smooth. On it Newton's
equation is

$$\bigl(P B P + \tfrac1\gamma P(I - P)\bigr) d = -P\bigl(\nabla q(T) + \tfrac1\gamma(v - T)\bigr),$$

symmetric, with the curvature of g's pieces in its second term (for a ball that of its surface). The trial
$T(u) + \tau Pd$ is taken where it lowers the forward–backward envelope
$\varphi(u) = \min_w q(u) + \langle\nabla q(u), w - u\rangle + \|w - u\|^2/2\gamma + g(w)$, a smooth function with the
minima of $q + g$; $\tau = 0$ always does. Near the end the pieces stay the same and one step is exact.

**Source:** Themelis, Stella, Patrinos, *Forward–backward envelope for the sum of two nonconvex functions* (SIAM J.
Optim. 2018), algorithm ZeroFPR; Ouyang, Milzarek, *A trust region-type normal map-based semismooth Newton method*
(2023) for the symmetric equation.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from thalweg._types import Array, Count, Flag, Scalar

_MAX_HALVINGS = 12
_POWER_STEPS = 20


class CompositeModel(eqx.Module):
    """q + g around a point, in coordinates in which the metric is the identity.

    `point`: where the model was made; `slope`: ∇q there; `product`: v → Bv; `matrix`: B, or `None` for a model known by
    its products only; `prox(v, step)`: g's proximal map, and the value of g there; `kinks`: g at the point.
    """

    point: Array
    slope: Array
    product: Callable[[Array], Array]
    matrix: Array | None
    prox: Callable[[Array, Scalar], tuple[Array, Scalar]]
    kinks: Scalar

    def change(self, displacement: Array, image: Array) -> Scalar:
        """q's change along a displacement whose image under B is given."""
        return self.slope @ displacement + 0.5 * displacement @ image


class ModelSolution(eqx.Module):
    """What was found: the point, as the proximal map of `forward` with `step`; g there; the least curvature on its
    piece (infinite where that is a point), whether the tolerance was reached, and the iterations.
    """

    point: Array
    forward: Array
    step: Scalar
    kinks: Scalar
    curvature: Scalar
    converged: Flag
    num_steps: Count


class _Here(eqx.Module):
    """A point of the inner iteration, with its forward–backward step."""

    point: Array
    change: Scalar
    slope: Array
    forward: Array
    backward: Array
    kinks: Scalar
    envelope: Scalar


class _Inner(eqx.Module):
    """Where the inner iteration stands: the last point taken, and the trial `base + size · direction` from it."""

    here: _Here
    step: Scalar
    base: Array
    direction: Array
    size: Scalar
    halvings: Count
    wanted: Scalar
    allowed: Scalar
    length: Scalar
    curvature: Scalar
    done: Flag
    count: Count


def largest_curvature(product: Callable[[Array], Array], like: Array) -> Scalar:
    """The largest curvature in size, by power iteration; from below, so allow for some more."""

    def once(_: Any, carry: tuple[Array, Scalar]) -> tuple[Array, Scalar]:
        vector, _ = carry
        image = product(vector)
        size = jnp.linalg.norm(image)
        return image / jnp.where(size > 0, size, 1), size

    start = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
    start = start / jnp.linalg.norm(start)
    return jax.lax.fori_loop(0, _POWER_STEPS, once, (start, jnp.zeros((), like.dtype)))[1]


def minimise_composite_model(
    model: CompositeModel, shift: Scalar, largest: Scalar, tolerance: Scalar, max_steps: int
) -> ModelSolution:
    r"""Minimise $q(u) + \tfrac12\lambda\|u - u_0\|^2 + g(u)$ until $\|u - T(u)\|/\gamma$ is at most `tolerance`.

    **Arguments:** `shift`: $\lambda \ge 0$; `largest`: the largest curvature of q in size, about.
    """
    eps = jnp.finfo(model.point.dtype).eps

    def product(vector: Array) -> Array:
        return model.product(vector) + shift * vector

    def at(point: Array, step: Scalar) -> _Here:
        displacement = point - model.point
        image = product(displacement)
        slope, change = model.slope + image, model.change(displacement, image)
        forward = point - step * slope
        backward, kinks = model.prox(forward, step)
        gap = backward - point
        below = slope @ gap + 0.5 * gap @ gap / step + kinks - model.kinks
        return _Here(point, change, slope, forward, backward, kinks, change + below)

    # One evaluation in the whole loop, since compiling costs more than running: each pass takes the trial that stands,
    # if it is good or the last one, and finds the next direction; else it shortens it.
    def body(carry: _Inner) -> _Inner:
        trial = at(carry.base + carry.size * carry.direction, carry.step)
        length = _length(trial)
        good = trial.envelope <= carry.wanted
        good |= (trial.envelope <= carry.allowed) & (length < 0.5 * carry.length)
        take = good | (carry.size == 0)

        def shorter() -> _Inner:
            size = jnp.where(carry.halvings + 1 < _MAX_HALVINGS, carry.size / 2, 0)
            return eqx.tree_at(lambda c: (c.size, c.halvings), carry, (size, carry.halvings + 1))

        def next_direction() -> _Inner:
            gap = trial.point - trial.backward
            image = product(gap)
            long = gap @ image > 0.95 * (gap @ gap) / carry.step
            residual = trial.slope - image + (trial.forward - trial.backward) / carry.step
            direction, curvature = _newton_direction(model, product, shift, carry.step, trial.forward, residual)
            # A forward-backward step that is too long for the curvature is taken again, shorter, from the same point.
            one, zero = jnp.ones((), gap.dtype), jnp.zeros((), jnp.int32)
            wanted = trial.envelope - 0.02 * (gap @ gap) / carry.step
            rounding = 16 * eps * (jnp.abs(trial.change) + jnp.abs(trial.envelope) + jnp.abs(model.kinks))
            return _Inner(
                here=trial,
                step=jnp.where(long, carry.step / 2, carry.step),
                base=jnp.where(long, trial.point, trial.backward),
                direction=direction,
                size=jnp.where(long, 0, one),
                halvings=zero,
                wanted=wanted,
                allowed=trial.envelope + rounding,
                length=length,
                curvature=curvature,
                done=~long & (length <= tolerance * carry.step),
                count=carry.count + 1,
            )

        return jax.lax.cond(take, next_direction, shorter)

    first = 0.9 / (1.1 * largest + shift)
    first = jnp.where(jnp.isfinite(first), first, 1).astype(model.point.dtype)
    nothing, zero = jnp.zeros_like(model.point), jnp.zeros((), model.point.dtype)
    start = _Inner(
        here=_Here(nothing, zero, nothing, nothing, nothing, zero, zero),
        step=first,
        base=model.point,
        direction=nothing,
        size=zero,
        halvings=jnp.zeros((), jnp.int32),
        wanted=zero,
        allowed=zero,
        length=zero,
        curvature=zero,
        done=jnp.asarray(False),
        count=jnp.zeros((), jnp.int32),
    )
    end = jax.lax.while_loop(lambda carry: ~carry.done & (carry.count < max_steps), body, start)
    here = end.here
    return ModelSolution(here.backward, here.forward, end.step, here.kinks, end.curvature, end.done, end.count)


def _length(here: _Here) -> Scalar:
    return jnp.linalg.norm(here.point - here.backward)


def _newton_direction(
    model: CompositeModel,
    product: Callable[[Array], Array],
    shift: Scalar,
    step: Scalar,
    forward: Array,
    residual: Array,
) -> tuple[Array, Scalar]:
    """Newton's direction on the piece, and the least curvature on it."""
    if model.matrix is not None:
        projection = jax.jacfwd(lambda v: model.prox(v, step)[0])(forward)
        projection = 0.5 * (projection + projection.T)
        reduced = reduced_curvature(model.matrix, projection, step, shift)
        values, vectors = jnp.linalg.eigh(reduced)
        seen = jnp.abs(values) > 4 * values.size * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
        inverse = jnp.where(seen, 1 / jnp.where(seen, jnp.abs(values), 1), 0)
        direction = projection @ (vectors @ (inverse * (vectors.T @ (projection @ -residual))))
        return direction, jnp.min(jnp.where(seen, values, jnp.inf))
    _, project = jax.linearize(lambda v: model.prox(v, step)[0], forward)

    def reduced_product(vector: Array) -> Array:
        inside = project(vector)
        return project(product(inside)) + project(vector - inside) / step

    solution, curvature = _conjugate_gradients(reduced_product, project(-residual))
    return project(solution), curvature


def reduced_curvature(matrix: Array, projection: Array, step: Scalar, shift: Scalar) -> Array:
    r"""$P(B + \lambda)P + P(I - P)/\gamma$, symmetric."""
    size = matrix.shape[0]
    identity = jnp.eye(size, dtype=matrix.dtype)
    whole = projection @ (matrix + shift * identity) @ projection + projection @ (identity - projection) / step
    return 0.5 * (whole + whole.T)


def _conjugate_gradients(product: Callable[[Array], Array], right: Array) -> tuple[Array, Scalar]:
    """Conjugate gradients that stop at negative curvature, with the least curvature met along a search direction."""
    size = jnp.linalg.norm(right)
    accuracy = 1e-4
    limit = min(2 * right.size, 300)

    def unfinished(carry: Any) -> Flag:
        _, left, _, least, count = carry
        return (jnp.linalg.norm(left) > accuracy * size) & (least > 0) & (count < limit)

    def body(carry: Any) -> Any:
        solution, left, direction, least, count = carry
        image = product(direction)
        along, length = direction @ image, direction @ direction
        curvature = along / jnp.where(length > 0, length, 1)
        bent = curvature <= 0
        square = left @ left
        alpha = jnp.where(bent, 0, square / jnp.where(bent, 1, along))
        # At negative curvature the first direction is taken as it is, downhill; a later one is dropped.
        solution = jnp.where(bent & (count == 0), direction, solution + alpha * direction)
        left = left - alpha * image
        direction = left + (left @ left) / jnp.where(square > 0, square, 1) * direction
        return solution, left, direction, jnp.minimum(least, curvature), count + 1

    carry = (jnp.zeros_like(right), right, right, jnp.asarray(jnp.inf, right.dtype), jnp.asarray(0, jnp.int32))
    solution, _, _, least, _ = jax.lax.while_loop(unfinished, body, carry)
    return solution, least
