"""The formulas by which fixtures of test-time methods make their inputs, read without running any code of theirs.

A formula adds and scales tensors of the recipe: ``golden_tensor('name', (V, D), seed) + float32(3) * …``. Names are
sizes of the fixture's config, and ``seed``.
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


def evaluate_formula(formula: str, sizes: Mapping[str, int], place: str) -> np.ndarray:
    """The array, float32, that a formula makes of the recipe's tensors.

    Raises:
        ConfigError: It is no such formula; the message says `place`.
    """
    try:
        made = _value(ast.parse(formula, mode="eval").body, sizes)
    except (IndexError, KeyError, SyntaxError, TypeError, ValueError) as error:
        raise ConfigError(f"{place}: its formula cannot be read: {formula}") from error
    return np.asarray(made, dtype=np.float32)


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return node.value
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.Tuple):
        return tuple(_value(one, sizes) for one in node.elts)
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    if isinstance(node, ast.Subscript):
        return _value(node.value, sizes)[_value(node.slice, sizes)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_value(one, sizes) for one in node.args]
        if node.func.id == "golden_tensor":
            return recipe_tensor(*arguments)
        if node.func.id == "float32":
            return np.float32(*arguments)
    raise ValueError(ast.dump(node))
