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
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from thalweg._sums import folded
from thalweg._types import Array, Count, Flag, Scalar

_MAX_HALVINGS = 12
_POWER_STEPS = 20


class CompositeModel(eqx.Module):
    """q + g around a point, in coordinates in which the metric is the identity.

    `point`: where the model was made; `slope`: ∇q there; `product`: v → Bv; `matrix`: B, or `None` for a model known by
    its products only; `prox(v, step)`: g's proximal map, and beside it the same point in the coordinates of the state
    and the value of g there; `kinks`: g at the point; `largest`: the largest curvature of q in size, exact for a
    matrix, else about.
    """

    point: Array
    slope: Array
    product: Callable[[Array], Array]
    matrix: Array | None
    prox: Callable[[Array, Scalar], tuple[Array, tuple[Array, Scalar]]]
    kinks: Scalar
    largest: Scalar


class ModelSolution(eqx.Module):
    """What was found: the point, the same in the coordinates of the state, and g there; the least curvature on its
    piece (infinite where that is a point), whether the tolerance was reached, and the iterations.
    """

    point: Array
    there: Array
    kinks: Scalar
    curvature: Scalar
    converged: Flag
    num_steps: Count


class _Numbers(NamedTuple):
    """The numbers of the inner iteration, kept in one array, for as many arrays would be as many things to compile:
    the step of the forward-backward map; the trial's length along the direction; the
    envelope wanted and allowed; the length of the last residual; g; the least curvature; whether it is done; the count.
    """

    step: Any
    size: Any
    wanted: Any
    allowed: Any
    length: Any
    kinks: Any
    curvature: Any
    done: Any
    count: Any


class _Inner(NamedTuple):
    """Where the inner iteration stands: the last point taken, after its forward-backward step, in both coordinates, and
    the trial `base + size · direction` from it.
    """

    backward: Array
    there: Array
    base: Array
    direction: Array
    numbers: _Numbers


def largest_curvature(product: Callable[[Array], Array], like: Array) -> Scalar:
    """The largest curvature in size, by power iteration; from below, so allow for some more."""

    def once(_: Any, carry: tuple[Array, Scalar]) -> tuple[Array, Scalar]:
        vector, _ = carry
        image = product(vector)
        size = jnp.sqrt(folded([image**2])[0])
        return image / jnp.where(size > 0, size, 1), size

    start = jnp.asarray(np.random.default_rng(0).normal(size=like.size) / like.size**0.5, like.dtype)
    return jax.lax.fori_loop(0, _POWER_STEPS, once, (start, jnp.zeros((), like.dtype)))[1]


def minimise_composite_model(model: CompositeModel, shift: Scalar, tolerance: Scalar, max_steps: int) -> ModelSolution:
    r"""Minimise $q(u) + \tfrac12\lambda\|u - u_0\|^2 + g(u)$ until $\|u - T(u)\|/\gamma$ is at most `tolerance`.

    **Arguments:** `shift`: $\lambda \ge 0$.
    """
    eps = jnp.finfo(model.point.dtype).eps

    def product(vector: Array) -> Array:
        return model.product(vector) + shift * vector

    # One evaluation in the whole loop, since compiling costs more than running: each pass takes the trial that stands,
    # if it is good or the last one, and finds the next direction; else it shortens it.
    def body(carry: _Inner) -> _Inner:
        now = carry.numbers
        point = carry.base + now.size * carry.direction
        displacement = point - model.point
        image = product(displacement)
        slope = model.slope + image
        forward = point - now.step * slope
        backward, project, (there, kinks) = jax.linearize(lambda v: model.prox(v, now.step), forward, has_aux=True)
        gap = point - backward
        change, along, square = folded([model.slope * displacement + 0.5 * displacement * image, slope * gap, gap**2])
        envelope = change - along + 0.5 * square / now.step + kinks - model.kinks
        length = jnp.sqrt(square)
        good = (envelope <= now.wanted) | ((envelope <= now.allowed) & (length < 0.5 * now.length))

        def shorter() -> _Inner:
            size = jnp.where(now.size > 0.5 ** (_MAX_HALVINGS - 1), now.size / 2, 0)
            return carry._replace(numbers=now._replace(size=size))

        def next_direction() -> _Inner:
            bent = product(gap)
            residual = slope - bent + (forward - backward) / now.step
            direction, curvature = _newton_direction(model, product, shift, now.step, project, residual)
            # A forward-backward step that is too long for the curvature is taken again, shorter, from the same point.
            long = jnp.asarray(False)
            if model.matrix is None:
                long = gap @ bent > 0.95 * square / now.step
            rounding = 16 * eps * (jnp.abs(change) + jnp.abs(envelope) + jnp.abs(model.kinks))
            numbers = _Numbers(
                step=jnp.where(long, now.step / 2, now.step),
                size=jnp.where(long, 0.0, 1.0).astype(gap.dtype),
                wanted=envelope - 0.02 * square / now.step,
                allowed=envelope + rounding,
                length=length,
                kinks=kinks,
                curvature=curvature,
                done=(~long & (length <= tolerance * now.step)).astype(gap.dtype),
                count=now.count + 1,
            )
            return _Inner(backward, there, jnp.where(long, point, backward), direction, numbers)

        return jax.lax.cond(good | (now.size == 0), next_direction, shorter)

    first = 0.9 / ((1.0 if model.matrix is not None else 1.1) * model.largest + shift)
    first = jnp.where(jnp.isfinite(first), first, 1).astype(model.point.dtype)
    nothing = jnp.zeros_like(model.point)
    zero = jnp.zeros((), nothing.dtype)
    numbers = _Numbers(first, *[zero] * (len(_Numbers._fields) - 1))
    start = _Inner(nothing, nothing, model.point, nothing, numbers)

    def unfinished(carry: _Inner) -> Flag:
        now = carry.numbers
        return (now.done == 0) & (now.count < max_steps)

    end = jax.lax.while_loop(unfinished, body, start)
    last = end.numbers
    count = last.count.astype(jnp.int32)
    return ModelSolution(end.backward, end.there, last.kinks, last.curvature, last.done > 0, count)


def _newton_direction(
    model: CompositeModel,
    product: Callable[[Array], Array],
    shift: Scalar,
    step: Scalar,
    project: Callable[[Array], Array],
    residual: Array,
) -> tuple[Array, Scalar]:
    """Newton's direction on the piece, and the least curvature on it; `project` is the derivative P."""
    if model.matrix is not None:
        identity = jnp.eye(residual.size, dtype=residual.dtype)
        projection = jax.vmap(project)(identity)
        projection = 0.5 * (projection + projection.T)
        reduced = projection @ (model.matrix + (shift - 1 / step) * identity) @ projection + projection / step
        values, vectors = jnp.linalg.eigh(reduced)
        sizes = jnp.abs(values)
        # They come in order.
        seen = sizes > 4 * values.size * jnp.finfo(values.dtype).eps * jnp.maximum(sizes[0], sizes[-1])
        inverse = jnp.where(seen, 1 / jnp.where(seen, sizes, 1), 0)
        direction = project(vectors @ (inverse * (project(-residual) @ vectors)))
        return direction, folded([], [], [jnp.where(seen, values, jnp.inf)])[0]

    def reduced_product(vector: Array) -> Array:
        inside = project(vector)
        return project(product(inside)) + project(vector - inside) / step

    solution, curvature = _conjugate_gradients(reduced_product, project(-residual))
    return project(solution), curvature


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
