"""The language of filters, a subset of AIP-160: from text to a syntax tree.

As AIP-160 has it, OR binds closer than AND: `a AND b OR c` means `a AND (b OR c)`. Left out of AIP-160 are literals
without a field, terms side by side without AND, `-` for NOT, functions, and `*` anywhere but at a value's end.
The parser works on a stack of its own (LALR), so no text makes it recurse; the tree is at most MAX_DEPTH deep.
What fields there are, and what values they take, is not known here: see `filters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args

from atelier.errors import InvalidArgumentError
from atelier.rpc.names import check_text, shown

MAX_CHARACTERS = 2000
MAX_DEPTH = 20
MAX_TERMS = 50
_GRAMMAR = r"""
?start: conjunction
conjunction: disjunction (_AND disjunction)*
disjunction: factor (_OR factor)*
?factor: negation | group | term
negation: NOT factor
group: LPAR conjunction _RPAR
term: FIELD COMPARATOR value
value: QUOTED | WORD

_AND: /AND\b/
_OR: /OR\b/
NOT.2: /NOT\b/
LPAR: "("
_RPAR: ")"
FIELD: /[A-Za-z_][\w-]*(\.[\w-]+)*/
COMPARATOR: /!=|<=|>=|[=<>:]/
QUOTED: /"([^"\\]|\\["'\\*])*"|'([^'\\]|\\["'\\*])*'/
WORD: /[^\s()"'\\=<>!:][^\s()"'\\]*/
%ignore /\s+/
"""
_SHOWN_TOKENS = {
    "FIELD": "a field",
    "NOT": "NOT",
    "LPAR": "(",
    "COMPARATOR": "one of = != < <= > >= :",
    "QUOTED": 'a value: a word, or text in quotes where \\ stands before each ", \\ and * that is meant itself',
    "_AND": "AND",
    "_OR": "OR",
    "_RPAR": ")",
    "$END": "the end",
}
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Value:
    """What stands right of a comparator, without quotes and backslashes."""

    text: str
    is_prefix: bool
    """It ended with `*`, which is not in the text."""


@dataclass(frozen=True, slots=True)
class Term:
    """A comparison."""

    field: str
    comparator: str
    value: Value
    position: int
    """Of its first character in the filter, counted from 1."""
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Negation:
    """What is true when its part is not."""

    part: Node
    depth: int


@dataclass(frozen=True, slots=True)
class Junction:
    """What is true when all parts are, or any."""

    operator: Literal["AND", "OR"]
    parts: tuple[Node, ...]
    depth: int


Node = Term | Negation | Junction


def parse_filter(text: str) -> Node | None:
    """The tree of a filter; None for one without a word, which everything passes.

    Raises:
        InvalidArgumentError: of the field `filter`, with the position.
    """
    if not check_text(text, "filter", max_characters=MAX_CHARACTERS).strip():
        return None
    try:
        tree: Node = _PARSER.parse(text)  # type: ignore[assignment]  # the transformer makes nodes
    except UnexpectedInput as error:
        raise _unexpected(text, error) from error
    count = sum(1 for _ in terms_of(tree))
    if count > MAX_TERMS:
        raise InvalidArgumentError("filter", f"has {count} comparisons; at most {MAX_TERMS} are allowed")
    return tree


def terms_of(node: Node) -> Iterator[Term]:
    """The comparisons of a tree."""
    match node:
        case Term():
            yield node
        case Negation(part):
            yield from terms_of(part)
        case Junction(_, parts):
            for part in parts:
                yield from terms_of(part)


def invalid_at(position: int, description: str) -> InvalidArgumentError:
    """The error of a filter that is wrong at a character, counted from 1."""
    return InvalidArgumentError("filter", f"character {position}: {description}", metadata={"position": str(position)})


@v_args(inline=True)
class _Builder(Transformer[Token, Node]):
    """Makes the nodes while the parser goes on, so that no walk through a deep tree is needed."""

    def conjunction(self, *parts: Node) -> Node:
        return _junction("AND", parts)

    def disjunction(self, *parts: Node) -> Node:
        return _junction("OR", parts)

    def negation(self, not_: Token, part: Node) -> Node:
        return Negation(part, _deeper(part.depth, not_))

    def group(self, opening: Token, part: Node) -> Node:
        return Junction("AND", (part,), _deeper(part.depth, opening))

    def term(self, field: Token, comparator: Token, value: Value) -> Node:
        return Term(str(field), str(comparator), value, _position(field))

    def value(self, token: Token) -> Value:
        text = token[1:-1] if token.type == "QUOTED" else str(token)
        plain = _ESCAPED.sub("", text)
        is_prefix = plain.endswith("*") and text.endswith("*")
        if "*" in plain.removesuffix("*") or (plain.endswith("*") and not is_prefix):
            raise invalid_at(
                _position(token),
                f"{shown(str(token))} has a `*` before its end; at the end it stands for any characters, and `\\*` in "
                "quotes for itself",
            )
        return Value(_ESCAPED.sub(r"\1", text.removesuffix("*") if is_prefix else text), is_prefix)


_PARSER = Lark(_GRAMMAR, parser="lalr", transformer=_Builder())


def _junction(operator: Literal["AND", "OR"], parts: tuple[Node, ...]) -> Node:
    return parts[0] if len(parts) == 1 else Junction(operator, parts, max(part.depth for part in parts))


def _deeper(depth: int, token: Token) -> int:
    if depth == MAX_DEPTH:
        raise invalid_at(
            _position(token), f"parentheses and NOT are nested too deep; at most {MAX_DEPTH} levels are allowed"
        )
    return depth + 1


def _position(token: Token) -> int:
    return (token.start_pos or 0) + 1


def _unexpected(text: str, error: UnexpectedInput) -> InvalidArgumentError:
    if isinstance(error, UnexpectedToken):
        names, at_end = error.accepts or error.expected, error.token.type == "$END"
    else:
        assert isinstance(error, UnexpectedCharacters)
        names, at_end = error.allowed, False
    position = len(text) + 1 if at_end else (error.pos_in_stream or 0) + 1
    found = "the filter ends" if at_end else f"there is {shown(text[position - 1 :], 20)}"
    allowed = " or ".join(shown_token for name, shown_token in _SHOWN_TOKENS.items() if name in names)
    return invalid_at(position, f"{found}; expected is {allowed}")
