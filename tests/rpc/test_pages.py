"""Page sizes and page tokens."""

from __future__ import annotations

from datetime import UTC, datetime
from types import NoneType
from typing import Any

import pytest

from atelier.errors import InvalidArgumentError
from atelier.rpc.pages import DEFAULT_SIZE, MAX_NUMBER, MAX_SIZE, parse_page


@pytest.mark.parametrize(("asked", "given"), [(0, DEFAULT_SIZE), (7, 7), (MAX_SIZE, MAX_SIZE), (10**9, MAX_SIZE)])
def test_size_is_defaulted_and_coerced(asked: int, given: int) -> None:
    assert parse_page(asked, "", "jobs").size == given


def test_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        parse_page(-1, "", "jobs")


def token_after(key: str | int, *arguments: str, first: str | int = "") -> str:
    """The token of a page that ends with the item `key`, which is not the last."""
    return parse_page(1, "", *arguments, first=first).cut([key, key], key=lambda item: item)[1]


@pytest.mark.parametrize(("key", "first"), [("fox", ""), ("é", ""), (17, MAX_NUMBER)])
def test_token_brings_its_key_back(key: str | int, first: str | int) -> None:
    token = token_after(key, "jobs", "acme", first=first)
    assert parse_page(0, token, "jobs", "acme", first=first).after == key


def test_last_page_has_no_token() -> None:
    assert parse_page(2, "", "jobs").cut(["a", "b"], key=str) == (["a", "b"], "")


@pytest.mark.parametrize("arguments", [("jobs", "other"), ("batches", "acme"), ("jobs",), ()])
def test_token_of_other_arguments_is_refused(arguments: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_page(0, token_after("fox", "jobs", "acme"), *arguments)


@pytest.mark.parametrize(("key", "first"), [("fox", MAX_NUMBER), (17, ""), (0, 9), (10, 9), (True, 9)])
def test_token_with_a_key_that_cannot_be_is_refused(key: str | int, first: str | int) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_page(0, token_after(key, "jobs"), "jobs", first=first)


@pytest.mark.parametrize("token", ["x", "é", "bnVsbA==", "Nw==", "e30=", "W10=", "WzEsMl0=", "W" * 10_000])
def test_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_page(0, token, "jobs")
    assert caught.value.violations[0].field == "page_token"


TIME = datetime(2026, 1, 31, 12, 0, 0, 7, tzinfo=UTC)
PARTS = [(float, NoneType), (datetime,), (str,), (int,)]


@pytest.mark.parametrize("key", [(0.1, TIME, "fox", 7), (None, TIME, "é", MAX_NUMBER), (-1e300, TIME, "", 1)])
def test_token_brings_a_key_of_several_parts_back(key: tuple[Any, ...]) -> None:
    _, token = parse_page(1, "", "versions", first=()).cut([key, key], key=lambda item: item)
    assert parse_page(0, token, "versions", first=(), parts=PARTS).after == key
    assert parse_page(0, "", "versions", first=(), parts=PARTS).after == ()


@pytest.mark.parametrize(
    "key",
    [
        (0.1, TIME, "fox"),
        (0.1, TIME, "fox", 7, 7),
        (1, TIME, "fox", 7),
        (float("nan"), TIME, "fox", 7),
        (0.1, "yesterday", "fox", 7),
        (0.1, "0001-01-01T00:00:00+10:00", "fox", 7),
        (0.1, TIME, "a\0", 7),
        (0.1, TIME, "\ud800", 7),
        (0.1, TIME, None, 7),
        (0.1, TIME, "fox", 2**70),
        (0.1, TIME, "fox", True),
        ([], TIME, "fox", 7),
        "fox",
        7,
    ],
)
def test_token_with_parts_that_no_row_has_is_refused(key: Any) -> None:
    _, token = parse_page(1, "", "versions", first=()).cut([key, key], key=lambda item: item)
    with pytest.raises(InvalidArgumentError) as caught:
        parse_page(0, token, "versions", first=(), parts=PARTS)
    assert caught.value.violations[0].field == "page_token"
