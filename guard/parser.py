"""Condition text -> a typed tree. Python's grammar does the parsing; nothing is ever evaluated.

A condition is one line to the parser (line breaks are read as spaces), so a node's column is its offset in the text.
"""

import ast
import re
import warnings
from collections.abc import Collection, Iterator
from math import isfinite

from guard.errors import ExpressionError, Flaw, did_you_mean
from guard.expressions import (
    SCALARS,
    And,
    Call,
    Comparison,
    Condition,
    Exceeds,
    Not,
    Number,
    Or,
    Scalar,
    Series,
    Test,
    Value,
    make_call,
    mirrored,
)
from guard.functions import FUNCTIONS
from guard.types import Scope

MAX_CHARACTERS = 2_000
MAX_DEPTH = 32
MAX_WINDOW = 65_536

SCOPES = tuple(scope.value for scope in Scope)
_NAMES = (*FUNCTIONS, "exceeds", *SCALARS)
_OPERATORS: dict[type[ast.cmpop], str] = {
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_FOREIGN_CHARACTER = re.compile(r"[^A-Za-z0-9_.,()<>=!+\-\s]|[^\x00-\x7f]")


def parse(text: str, monitors: Collection[str] | None = None) -> Condition:
    """Understand a condition. `monitors`: the names that may be read; None: any. Raises ExpressionError."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(
            text[:80], [Flaw(0, "too-long", f"a condition has at most {MAX_CHARACTERS:,} characters")]
        )
    if foreign := _FOREIGN_CHARACTER.search(text):
        raise ExpressionError(text, [_foreign_character(foreign.start(), foreign.group())])
    parser = _Parser(offset=len(text) - len(text.lstrip()), monitors=monitors)
    condition = None
    try:
        condition = parser.condition(_python_tree(text), depth=0)
    except _FlawError as error:
        parser.flaws.append(error.flaw)
    if condition is None or parser.flaws:
        raise ExpressionError(text, parser.flaws)
    return condition


def _foreign_character(at: int, character: str) -> Flaw:
    hint = {
        "'": "there are no strings in conditions",
        '"': "there are no strings in conditions",
        "#": "write comments above the rule, in YAML",
        "&": "write `and`",
        "|": "write `or`",
        "%": "write a share: 0.001 for 0.1 %",
        "≥": "write `>=`",
        "≤": "write `<=`",
    }.get(character, "a condition has series, functions, numbers, comparisons, and/or/not and parentheses")
    return Flaw(at, "unsupported", f"{character!r} is not part of the condition language", hint)


class _FlawError(Exception):
    def __init__(self, flaw: Flaw) -> None:
        self.flaw = flaw


def _python_tree(text: str) -> ast.expr:
    line = re.sub(r"\s", " ", text).strip()
    lead = len(text) - len(text.lstrip())
    if not line:
        raise _FlawError(
            Flaw(0, "syntax", "the condition is empty", "write for example: max(prompt.harm) > 0.9")
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Python merely warns of `0.5or`; here it is a typo
            return ast.parse(line, mode="eval").body
    except SyntaxError as error:
        at = min(error.offset - 1, len(line)) if error.offset else len(line)  # 0: at its end
        message = (error.msg or "invalid syntax").removesuffix(" Perhaps you forgot a comma?").rstrip(".")
        if at == len(line):
            message = "something is missing at the end of the condition"
        raise _FlawError(Flaw(lead + at, "syntax", message, _syntax_hint(line))) from None
    except (RecursionError, MemoryError, ValueError, Warning):
        raise _FlawError(Flaw(lead, "too-deep", "the condition is too deeply nested")) from None


_SLIPS = {
    r"\bAND\b|\bOR\b|\bNOT\b": "write `and`, `or` and `not` in lower case",
    r"=>|=<": "write `>=` or `<=`",
    r"!(?!=)": "write `not`",
    r"\)\s*=(?!=)": "write `==` to compare",
}
"""What people write who know another language."""


def _syntax_hint(line: str) -> str:
    for slip, hint in _SLIPS.items():
        if re.search(slip, line):
            return hint
    return "a condition looks like this: max(prompt.harm) > 0.9 and turn() > 1"


def _name_hint(name: str) -> str:
    if name in SCALARS:
        return f"write {name}()"
    if name in FUNCTIONS:
        return f"write {name}(...) with what it is of"
    return f"write a series as max(prompt.{name})"


class _Parser:
    """One walk over Python's tree, by a whitelist. Flaws in one operand of and/or do not hide those in the next."""

    def __init__(self, offset: int, monitors: Collection[str] | None) -> None:
        self.flaws: list[Flaw] = []
        self._offset = offset
        self._monitors = monitors

    def _flaw(self, node: ast.AST, code: str, message: str, hint: str = "") -> _FlawError:
        return _FlawError(Flaw(self._at(node), code, message, hint))

    def _at(self, node: ast.AST) -> int:
        return int(getattr(node, "col_offset", 0)) + self._offset

    # --- true or false

    def condition(self, node: ast.expr, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise self._flaw(node, "too-deep", f"the condition is nested deeper than {MAX_DEPTH} levels")
        match node:
            case ast.BoolOp(op=op, values=values):
                kind = And if isinstance(op, ast.And) else Or
                return kind(tuple(self._operands(values, depth + 1)), self._at(node))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Not(self.condition(operand, depth + 1), self._at(node))
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id="exceeds")):
                return self._exceeds(node)
            case ast.Constant(value=bool()):
                raise self._flaw(
                    node, "type", "a condition has no constants", "to switch a rule off, write `mode: off`"
                )
            case _:
                self._value(node)  # says what is wrong with it, if it is not even a number
                raise self._flaw(
                    node, "type", "this is a number where true or false is needed", "compare it: ... > 0.9"
                )

    def _operands(self, nodes: list[ast.expr], depth: int) -> Iterator[Condition]:
        for node in nodes:
            try:
                yield self.condition(node, depth)
            except _FlawError as error:
                self.flaws.append(error.flaw)

    def _comparison(self, node: ast.Compare) -> Comparison:
        first, *rest = (self._value(side) for side in (node.left, *node.comparators))
        if isinstance(first, Number) and all(isinstance(value, Number) for value in rest):
            raise self._flaw(node, "constant", "this compares numbers only, so it never changes")
        return Comparison(first, tuple(zip(self._operators(node), rest, strict=True)), self._at(node))

    def _operators(self, node: ast.Compare) -> list[str]:
        for op, right in zip(node.ops, node.comparators, strict=True):
            if type(op) not in _OPERATORS:
                raise self._flaw(right, "unsupported", "`in` and `is` are not part of the condition language")
        return [_OPERATORS[type(op)] for op in node.ops]

    # --- numbers

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=int() | float()) | ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return Number(self._number(node), self._at(node))
            case ast.Call(func=ast.Name(id="exceeds")):
                raise self._flaw(
                    node, "type", "exceeds() is true or false where a number is needed", "write it by itself"
                )
            case ast.Call(func=ast.Name(id=name)) if name in SCALARS:
                if node.args or node.keywords:
                    raise self._flaw(node, "type", f"{name}() takes no argument", f"write {name}()")
                return Scalar(name, self._at(node))
            case ast.Call():
                return self._call(node)
            case ast.Attribute():
                series = self._series(node)
                raise self._flaw(
                    node, "type", f"{series} has a score at every token", f"take one number: max({series})"
                )
            case ast.Name(id=name):
                raise self._flaw(node, "unknown-name", f"unknown name '{name}'", _name_hint(name))
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                raise self._flaw(node, "type", "this is true or false where a number is needed")
            case ast.BinOp():
                raise self._flaw(node, "unsupported", "there is no arithmetic in conditions")
            case _:
                raise self._flaw(node, "unsupported", "this is not part of the condition language")

    def _number(self, node: ast.expr) -> float:
        sign = 1.0
        inner = node
        if isinstance(node, ast.UnaryOp):
            sign = -1.0 if isinstance(node.op, ast.USub) else 1.0
            inner = node.operand
        if not (isinstance(inner, ast.Constant) and type(inner.value) in {int, float}):
            raise self._flaw(node, "type", "a number is needed here", "for example 0.9")
        try:
            value = sign * float(str(inner.value))
        except (OverflowError, ValueError):
            value = float("inf")
        if not isfinite(value):
            raise self._flaw(node, "type", "this number is too large")
        return value

    def _series(self, node: ast.expr) -> Series:
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            hint = "write <scope>.<monitor>, for example prompt.harm"
            if isinstance(node, ast.BinOp):
                hint += "; names have letters, digits and _ only"
            raise self._flaw(node, "type", "a series is needed here", hint)
        scope, monitor = node.value.id, node.attr
        if scope not in SCOPES:
            raise self._flaw(node, "unknown-scope", f"unknown scope '{scope}'", did_you_mean(scope, SCOPES))
        if self._monitors is not None and monitor not in self._monitors:
            at = (node.end_col_offset or 0) - len(monitor) + self._offset
            hint = did_you_mean(monitor, self._monitors) or "no monitors are loaded"
            raise _FlawError(Flaw(at, "unknown-monitor", f"unknown monitor '{monitor}'", hint))
        return Series(Scope(scope), monitor, self._at(node))

    def _exceeds(self, node: ast.Call) -> Exceeds:
        example = "write exceeds(prompt.harm, fpr=0.001)"
        for keyword in node.keywords:
            if keyword.arg != "fpr":
                told = f"exceeds() has no option '{keyword.arg or '**'}'"
                raise self._flaw(keyword, "unknown-option", told, did_you_mean(keyword.arg or "**", ("fpr",)))
        if len(node.args) != 1:
            raise self._flaw(node, "type", "exceeds() takes one series", example)
        series = self._series(node.args[0])
        if len(node.keywords) > 1:
            raise self._flaw(node.keywords[1], "unknown-option", "fpr= is given twice", "keep one of them")
        if not node.keywords:
            raise self._flaw(node, "budget", "exceeds() needs a false-positive budget", example)
        rate = node.keywords[0].value
        fpr = self._number(rate)
        if not 0 < fpr < 1:
            hint = "for example 0.001 for 0.1 %"
            raise self._flaw(rate, "budget", "fpr= is a share of benign requests, between 0 and 1", hint)
        return Exceeds(series, fpr, at=self._at(node), fpr_at=self._at(rate))

    def _test(self, node: ast.expr, function: str) -> Test:
        example = f"write {function}(response.x > 0.7)"
        if not isinstance(node, ast.Compare):
            raise self._flaw(node, "type", f"{function}() takes a comparison over a series", example)
        sides = (node.left, *node.comparators)
        operators = self._operators(node)
        series = [i for i, side in enumerate(sides) if isinstance(side, ast.Attribute)]
        if len(series) != 1 or len(sides) > 3:  # noqa: PLR2004  (low < series < high at most)
            raise self._flaw(node, "type", f"{function}() compares one series with numbers", example)
        i = series[0]
        if len(sides) > 2 and i != 1:  # noqa: PLR2004
            raise self._flaw(
                node,
                "type",
                "in a chained comparison the series stands in the middle",
                "0.2 < response.x < 0.7",
            )
        bounds = []
        if i > 0:
            bounds.append((mirrored(operators[i - 1]), self._number(sides[i - 1])))
        if i < len(operators):
            bounds.append((operators[i], self._number(sides[i + 1])))
        return Test(self._series(sides[i]), tuple(bounds), self._at(node))

    def _call(self, node: ast.Call) -> Call:
        if not isinstance(node.func, ast.Name):
            raise self._flaw(node, "unsupported", "only a function can be called", did_you_mean("", _NAMES))
        name = node.func.id
        if name not in FUNCTIONS:
            raise self._flaw(
                node, "unknown-function", f"unknown function '{name}'", did_you_mean(name, _NAMES)
            )
        function = FUNCTIONS[name]
        if len(node.args) != 1:
            form = "response.x > 0.7" if function.over == "test" else "response.x"
            raise self._flaw(
                node, "type", f"{name}() takes one argument", f"write {name}({form}), and window= by its name"
            )
        if function.over == "series" and isinstance(node.args[0], ast.Compare):
            testers = ", ".join(f"{n}()" for n, f in FUNCTIONS.items() if f.over == "test")
            raise self._flaw(
                node.args[0],
                "type",
                f"{name}() takes a series, not a comparison",
                f"these take one: {testers}",
            )
        over = self._series(node.args[0]) if function.over == "series" else self._test(node.args[0], name)
        options = self._options(node, name)
        if function.takes_window == "required" and "window" not in options:
            raise self._flaw(node, "window", f"{name}() needs a window", f"write {name}({over}, window=16)")
        return make_call(name, over, options.get("window", 0), options.get("min"), self._at(node))

    def _options(self, node: ast.Call, name: str) -> dict[str, int]:
        allowed = ("min",) if FUNCTIONS[name].takes_window == "refused" else ("window", "min")
        options: dict[str, int] = {}
        for keyword in node.keywords:
            key = keyword.arg or "**"
            if key not in allowed:
                raise self._flaw(
                    keyword, "unknown-option", f"{name}() has no option '{key}'", did_you_mean(key, allowed)
                )
            if key in options:
                raise self._flaw(keyword, "unknown-option", f"{key}= is given twice", "keep one of them")
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            if type(value) is not int or not 1 <= value <= MAX_WINDOW:
                raise self._flaw(
                    keyword.value, "window", f"{key}= is a whole number of tokens from 1 to {MAX_WINDOW:,}"
                )
            options[key] = value
        return options
