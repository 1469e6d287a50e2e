"""Names, ids and text in requests."""

from __future__ import annotations

import pytest

from atelier.errors import InvalidArgumentError, PermissionDeniedError
from atelier.rpc.call import Call, set_call
from atelier.rpc.names import ADAPTER, VERSION, check_id, check_text, shown


@pytest.fixture(autouse=True)
def acme() -> None:
    """A call by the tenant `acme`."""
    set_call(Call(tenant="acme", subject="test", correlation_id="c" * 32))


def test_name_is_taken_apart_and_put_together() -> None:
    ids = VERSION.parse("tenants/acme/adapters/fox/versions/3", "name")
    assert ids == {"tenant": "acme", "adapter": "fox", "version": "3"}
    assert VERSION.format(**ids) == "tenants/acme/adapters/fox/versions/3"
    assert ADAPTER.format(adapter="fox") == "tenants/acme/adapters/fox"


def test_hyphen_stands_for_the_caller_s_tenant() -> None:
    assert ADAPTER.parse("tenants/-/adapters/fox", "name")["tenant"] == "acme"


@pytest.mark.parametrize(
    "name",
    [
        *("", "fox", "tenants/acme", "tenants/acme/adapters/", "tenants//adapters/fox", "/tenants/acme/adapters/fox"),
        *("tenants/acme/adapters/fox/", "tenants/acme/adapters/fox\n", "tenants/acme/adapters/fo x"),
        *("tenants/acme/adapters/..", "tenants/acme/adapters/f\0x", f"tenants/acme/adapters/{'x' * 64}"),
    ],
)
def test_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        ADAPTER.parse(name, "parent")
    assert caught.value.violations[0].field == "parent"


def test_name_of_another_tenant_is_denied() -> None:
    with pytest.raises(PermissionDeniedError):
        ADAPTER.parse("tenants/other/adapters/fox", "name")


@pytest.mark.parametrize("value", ["a", "fox", "fox-2", "a" * 63])
def test_well_formed_ids_pass(value: str) -> None:
    assert check_id(value, "id") == value


@pytest.mark.parametrize("value", ["", "-a", "a-", "2fox", "A", "a_b", "a" * 64, "a\n", "é"])
def test_ill_formed_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgumentError):
        check_id(value, "id")


def test_text_must_be_of_allowed_length_and_visible_where_required() -> None:
    assert check_text("", "text", max_characters=3) == ""
    assert check_text("é–x", "text", max_characters=3, required=True) == "é–x"
    for value in ("abcd", " \n", "a\0"):
        with pytest.raises(InvalidArgumentError):
            check_text(value, "text", max_characters=3, required=True)


def test_what_is_quoted_from_a_request_is_short_and_printable() -> None:
    assert len(shown("x" * 10_000)) < 100
    assert shown("a\n\0") == r"'a\n\x00'"
