"""Page sizes and page tokens."""

from __future__ import annotations

import pytest

from atelier.errors import InvalidArgumentError
from atelier.rpc.pages import DEFAULT_SIZE, MAX_SIZE, parse_page


@pytest.mark.parametrize(("asked", "given"), [(0, DEFAULT_SIZE), (7, 7), (MAX_SIZE, MAX_SIZE), (10**9, MAX_SIZE)])
def test_size_is_defaulted_and_coerced(asked: int, given: int) -> None:
    assert parse_page(asked, "", "jobs").size == given


def test_negative_size_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        parse_page(-1, "", "jobs")


@pytest.mark.parametrize("key", ["fox", "é", 17])
def test_token_brings_its_key_back(key: str | int) -> None:
    token = parse_page(0, "", "jobs", "acme").token_after(key)
    assert parse_page(0, token, "jobs", "acme").after == key


@pytest.mark.parametrize("arguments", [("jobs", "other"), ("batches", "acme"), ("jobs",), ()])
def test_token_of_other_arguments_is_refused(arguments: tuple[str, ...]) -> None:
    token = parse_page(0, "", "jobs", "acme").token_after("fox")
    with pytest.raises(InvalidArgumentError):
        parse_page(0, token, *arguments)


@pytest.mark.parametrize("token", ["x", "é", "bnVsbA==", "Nw==", "e30=", "W10=", "WzEsMl0=", "W" * 10_000])
def test_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_page(0, token, "jobs")
    assert caught.value.violations[0].field == "page_token"
