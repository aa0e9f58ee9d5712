"""The calculator a model may call: arithmetic, and counting a substring. Nothing else can be reached.

    calculate("12*(3+4)")                 -> "84"
    calculate("10/4")                     -> "2.5"
    calculate("'strawberry'.count('r')")  -> "3"
    calculate("9**9**9")                  -> None

What a model writes is untrusted: the text is parsed, never executed, and only the nodes named here are evaluated.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable

MAX_EXPRESSION = 200  # characters; bounds the digits of any product, and the depth of nesting
MAX_RESULT = 64  # characters
ARITHMETIC = frozenset("0123456789+-*/.() ")

_BINARY: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_UNARY: dict[type[ast.unaryop], Callable] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class _Refused(Exception):
    """The expression asks for something the calculator does not do."""


def calculate(expression: str) -> str | None:
    """The value of an expression as text, or None when it is refused or has no finite value.

    Allowed are `+ - * / //`, signs, parentheses and decimal numbers (thousands commas are dropped), and
    `'text'.count('piece')` on string literals. Integral values are written without a fraction, others with up to 12
    significant digits.
    """
    expression = expression.strip()
    if not expression or len(expression) > MAX_EXPRESSION or "**" in expression or "\\" in expression:
        return None
    if ".count(" not in expression:
        expression = expression.replace(",", "")
        if not ARITHMETIC.issuperset(expression):
            return None
    try:
        tree = ast.parse(expression, mode="eval")
        text = _write(_value(tree.body))
    except (_Refused, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return text if len(text) <= MAX_RESULT else None


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"),
            args=[ast.Constant(value=str() as piece)],
            keywords=[],
        ):
            return text.count(piece)
    raise _Refused


def _write(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise _Refused
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.12g}"
