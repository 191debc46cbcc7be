"""Shapes of results without computing them, remembered: the checks before a run trace the same functions again and
again, and a second run of the same problem need not trace anything.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from thalweg import _tree
from thalweg._compiled import is_array

_LARGEST = 256
_known: OrderedDict[Any, Any] = OrderedDict()


def shapes_of(fn: Callable[..., Any], *args: Any) -> Any:
    """`equinox.filter_eval_shape(fn, *args)`, traced once for each function and each structure of its arguments.

    `fn` must be a function of a module, not one made for the call, or nothing is gained. What raises is not
    remembered.
    """
    key = structure_of(fn, args)
    if key is None:
        return eqx.filter_eval_shape(fn, *args)
    if key in _known:
        _known.move_to_end(key)
        return _known[key]
    shapes = eqx.filter_eval_shape(fn, *args)
    _known[key] = shapes
    while len(_known) > _LARGEST:
        _known.popitem(last=False)
    return shapes


def structure_of(fn: Callable[..., Any], args: Any) -> Any:
    """What a compiled call of the function would be known by: shapes, dtypes and what is not an array. `None` where
    something cannot be hashed or is being traced.
    """
    leaves, structure = jax.tree.flatten(args)
    if any(_tree.is_traced(leaf) for leaf in leaves):
        return None
    parts = tuple(
        (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) if is_array(leaf) else (type(leaf), leaf)
        for leaf in leaves
    )
    settings = tuple(getattr(jax.config, f"jax_{name}") for name in ("enable_x64", "numpy_dtype_promotion"))
    key = (fn, structure, parts, settings)
    try:
        hash(key)
    except TypeError:
        return None
    return key
