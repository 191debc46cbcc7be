r"""Whether each row of a model's outputs depends only on the same row of its inputs, proved from what JAX traced.

A Jacobian over $n$ observations costs $n$ backward passes over the whole batch, unless the observations can be taken
one by one; then it costs one. A model is any Python function, so this cannot be assumed: batch normalisation mixes
rows, `h / x.shape[0]` depends on how many there are, a closed-over array may hold one number for each. The model is
traced twice, with all rows and with one. The two programs must be the same, operation by operation, literal by literal,
and the one axis in which shapes differ must pass through every operation untouched. What is not understood counts as
not proved, which costs time and never correctness.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from thalweg import _tree
from thalweg._types import PyTree

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt "
    "integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or pow real "
    "reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
_REDUCTIONS = frozenset("argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum".split())
_CUMULATIVE = frozenset("cumlogsumexp cummax cummin cumprod cumsum sort split".split())
_CALLS = frozenset("pjit jit closed_call core_call custom_jvp_call custom_vjp_call checkpoint remat remat2".split())


def rows_are_independent(model: Callable[..., Any], params: PyTree, inputs: PyTree) -> int | None:
    """The number of rows if output row i is a function of the parameters and input row i alone, the same function for
    every i; `None` if that is not so or cannot be shown.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves or any(not hasattr(leaf, "shape") or len(leaf.shape) == 0 for leaf in leaves):
        return None
    counts = {leaf.shape[0] for leaf in leaves}
    if len(counts) != 1 or (count := counts.pop()) < 2:
        return None
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    try:
        whole, single = jax.make_jaxpr(model)(params, inputs), jax.make_jaxpr(model)(params, one)
    except Exception:  # the model does not take one row: whatever it raises, it says no more than that
        return None
    same = _same_constants(whole, single) and _is_rowwise(whole.jaxpr, single.jaxpr, count)
    rows_first = all(_axis(a, b, count) == 0 for a, b in zip(whole.jaxpr.outvars, single.jaxpr.outvars, strict=False))
    return count if same and rows_first else None


def _same_constants(whole: ClosedJaxpr, single: ClosedJaxpr) -> bool:
    if len(whole.consts) != len(single.consts):
        return False

    def same(a: Any, b: Any) -> bool:
        if a is b:
            return True
        if np.shape(a) != np.shape(b) or _tree.is_traced(a) or _tree.is_traced(b):
            return False
        return bool(np.array_equal(np.asarray(a), np.asarray(b)))

    return all(same(a, b) for a, b in zip(whole.consts, single.consts, strict=True))


def _axis(whole: Any, single: Any, count: int) -> int | None:
    """The axis of the rows, `None` where there is none, −1 where the shapes do not correspond."""
    a, b = np.shape(whole.val) if isinstance(whole, Literal) else whole.aval.shape, single.aval.shape
    if a == b:
        return None
    differing = [i for i, (m, n) in enumerate(zip(a, b, strict=False)) if m != n]
    if len(a) != len(b) or len(differing) != 1 or (a[differing[0]], b[differing[0]]) != (count, 1):
        return -1
    return differing[0]


def _is_rowwise(whole: Jaxpr, single: Jaxpr, count: int) -> bool:
    if len(whole.eqns) != len(single.eqns) or len(whole.outvars) != len(single.outvars):
        return False
    # Which variable feeds which operation must agree too.
    names: dict[Any, Any] = dict(
        zip((*whole.constvars, *whole.invars), (*single.constvars, *single.invars), strict=True)
    )

    def corresponds(a: Any, b: Any) -> bool:
        if isinstance(a, Literal) or isinstance(b, Literal):
            both = isinstance(a, Literal) and isinstance(b, Literal)
            return both and np.asarray(a.val).dtype == np.asarray(b.val).dtype and bool(np.array_equal(a.val, b.val))
        return names.get(a) is b

    for a, b in zip(whole.eqns, single.eqns, strict=True):
        if a.primitive is not b.primitive or len(a.invars) != len(b.invars) or len(a.outvars) != len(b.outvars):
            return False
        if not all(corresponds(x, y) for x, y in zip(a.invars, b.invars, strict=True)):
            return False
        names.update(zip(a.outvars, b.outvars, strict=True))
        if not _passes(a, b, count):
            return False
    return all(corresponds(a, b) for a, b in zip(whole.outvars, single.outvars, strict=True))


def _passes(a: Any, b: Any, count: int) -> bool:
    """Whether an operation keeps rows apart."""
    name = a.primitive.name
    ins = [_axis(x, y, count) for x, y in zip(a.invars, b.invars, strict=True)]
    outs = [_axis(x, y, count) for x, y in zip(a.outvars, b.outvars, strict=True)]
    if -1 in ins or -1 in outs:
        return False
    if name in _CALLS:
        inner, other = _inner(a.params), _inner(b.params)
        if inner is None or other is None or not _same_constants(inner, other):
            return False
        return _is_rowwise(inner.jaxpr, other.jaxpr, count)
    if all(axis is None for axis in (*ins, *outs)):
        return str(a.params) == str(b.params)
    rule = _RULES.get(name)
    if rule is None:
        rule = _elementwise if name in _ELEMENTWISE else _reduction if name in _REDUCTIONS else None
        rule = _cumulative if name in _CUMULATIVE else rule
    return rule is not None and rule(a, b, ins, outs)


def _inner(params: dict[str, Any]) -> ClosedJaxpr | None:
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        found = params.get(key)
        if isinstance(found, ClosedJaxpr):
            return found
        if isinstance(found, Jaxpr):
            return ClosedJaxpr(found, ())
    return None


def _settings(eqn: Any, *less: str) -> str:
    return str({key: value for key, value in eqn.params.items() if key not in (*less, "sharding", "out_sharding")})


def _elementwise(a: Any, b: Any, ins: list, outs: list) -> bool:
    row = outs[0]

    def fits(axis: int | None, shape: tuple[int, ...]) -> bool:
        # What does not depend on the row must be one number for all rows.
        return axis == row if axis is not None else len(shape) == 0 or (row is not None and shape[row] == 1)

    aligned = all(fits(axis, x.aval.shape) for axis, x in zip(ins, a.invars, strict=True))
    return aligned and _settings(a) == _settings(b)


def _reduction(a: Any, b: Any, ins: list, outs: list) -> bool:
    axes = a.params["axes"]
    if axes != b.params["axes"] or ins[0] in axes:
        return False
    return outs[0] == ins[0] - sum(axis < ins[0] for axis in axes) and _settings(a) == _settings(b)


def _cumulative(a: Any, b: Any, ins: list, outs: list) -> bool:
    axis = a.params.get("axis", a.params.get("dimension"))
    return all(i == ins[0] for i in (*ins, *outs)) and axis != ins[0] and _settings(a) == _settings(b)


def _broadcast(a: Any, b: Any, ins: list, outs: list) -> bool:
    places = a.params["broadcast_dimensions"]
    if places != b.params["broadcast_dimensions"] or len(ins) != 1:
        return False
    if ins[0] is not None:
        return places[ins[0]] == outs[0]
    # One value for all rows: a new axis, or one of length one that is stretched.
    return outs[0] not in places or a.invars[0].aval.shape[places.index(outs[0])] == 1


def _transpose(a: Any, b: Any, ins: list, outs: list) -> bool:
    order = a.params["permutation"]
    return order == b.params["permutation"] and order[outs[0]] == ins[0]


def _reshape(a: Any, b: Any, ins: list, outs: list) -> bool:
    if ins[0] is None or outs[0] is None or a.params.get("dimensions") is not None:
        return False
    before, after = a.invars[0].aval.shape, a.outvars[0].aval.shape
    # The axis is neither split nor merged: as many numbers stand before it, and after it, as did.
    return math.prod(before[: ins[0]]) == math.prod(after[: outs[0]]) and math.prod(before[ins[0] + 1 :]) == math.prod(
        after[outs[0] + 1 :]
    )


def _squeeze(a: Any, b: Any, ins: list, outs: list) -> bool:
    dropped = a.params["dimensions"]
    return (
        dropped == b.params["dimensions"]
        and ins[0] not in dropped
        and outs[0] == ins[0] - sum(axis < ins[0] for axis in dropped)
    )


def _slice(a: Any, b: Any, ins: list, outs: list) -> bool:
    axis, size = ins[0], a.invars[0].aval.shape
    start, limit = a.params["start_indices"], a.params["limit_indices"]
    strides = a.params["strides"] or (1,) * len(size)
    whole_axis = axis == outs[0] and start[axis] == 0 and limit[axis] == size[axis] and strides[axis] == 1
    others = lambda values: tuple(v for i, v in enumerate(values) if i != axis)  # noqa: E731
    same = a.params["strides"] == b.params["strides"] and start == b.params["start_indices"]
    return whole_axis and same and others(limit) == others(b.params["limit_indices"])


def _concatenate(a: Any, b: Any, ins: list, outs: list) -> bool:
    along = a.params["dimension"]
    return along == b.params["dimension"] and along != outs[0] and all(axis == outs[0] for axis in ins)


def _pad(a: Any, b: Any, ins: list, outs: list) -> bool:
    config = a.params["padding_config"]
    return config == b.params["padding_config"] and ins[0] == outs[0] and config[ins[0]] == (0, 0, 0) and ins[1] is None


def _dot(a: Any, b: Any, ins: list, outs: list) -> bool:
    ((left_sum, right_sum), (left_batch, right_batch)) = a.params["dimension_numbers"]
    if a.params["dimension_numbers"] != b.params["dimension_numbers"]:
        return False
    left, right = ins
    free_left = [i for i in range(len(a.invars[0].aval.shape)) if i not in (*left_sum, *left_batch)]
    free_right = [i for i in range(len(a.invars[1].aval.shape)) if i not in (*right_sum, *right_batch)]
    if left is not None and right is not None:
        batched = left in left_batch and right in right_batch
        return batched and list(left_batch).index(left) == list(right_batch).index(right) == outs[0]
    if left is not None:
        return left in free_left and outs[0] == len(left_batch) + free_left.index(left)
    return right in free_right and outs[0] == len(left_batch) + len(free_left) + free_right.index(right)


_RULES: dict[str, Callable[..., bool]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "dot_general": _dot,
}
