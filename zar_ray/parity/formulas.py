"""The formulas by which fixtures of test-time methods make their inputs, read without running any code of theirs.

A formula adds and scales tensors of the recipe: ``golden_tensor('name', (V, D), seed) + float32(3) * …``. Names are
sizes and lists of the fixture's config, ``seed``, and the fixture's other inputs, which may be drawn by
``RandomState(seed).randint(0, K, size=N)``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zar_ray.errors import ConfigError
from zar_ray.parity.recipe import recipe_tensor

_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def names_in(formula: str) -> frozenset[str]:
    """The names that a formula looks up; none where it cannot be read."""
    try:
        return frozenset(node.id for node in ast.walk(ast.parse(formula, mode="eval")) if isinstance(node, ast.Name))
    except (SyntaxError, ValueError):
        return frozenset()


def evaluate_formula(formula: str, known: Mapping[str, int | np.ndarray], place: str) -> np.ndarray:
    """The array that a formula makes of the recipe's tensors: float32, or int64 of drawn integers.

    Raises:
        ConfigError: It is no such formula; the message says `place`.
    """
    try:
        made = _value(ast.parse(formula, mode="eval").body, known)
    except (IndexError, KeyError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: its formula cannot be read: {formula}") from error
    drawn = isinstance(made, np.ndarray) and made.dtype.kind == "i"
    return np.asarray(made, dtype=np.int64 if drawn else np.float32)


def _value(node: ast.expr, known: Mapping[str, int | np.ndarray]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.Slice) and node.lower is node.upper is node.step is None:
        return slice(None)
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.Tuple):
        return tuple(_value(one, known) for one in node.elts)
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, known), _value(node.right, known))
    if isinstance(node, ast.Subscript):
        return _value(node.value, known)[_value(node.slice, known)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_value(one, known) for one in node.args]
        if node.func.id == "golden_tensor":
            return recipe_tensor(*arguments)
        if node.func.id == "float32":
            return np.float32(*arguments)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "randint":
        source = node.func.value
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == "RandomState":
            generator = np.random.RandomState(*(_value(one, known) for one in source.args))
            named = {str(one.arg): _value(one.value, known) for one in node.keywords}
            return generator.randint(*(_value(one, known) for one in node.args), **named)
    raise ValueError(ast.dump(node))
