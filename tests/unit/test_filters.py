"""Filters: what they mean to rows of real databases, and what is told of those that are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from atelier.errors import InvalidArgumentError
from atelier.storage.database import Database
from services.registry.filter_grammar import MAX_DEPTH, MAX_TERMS, parse_filter
from services.registry.main import MIGRATIONS
from services.registry.search import ADAPTER_FIELDS, VERSION_FIELDS
from services.registry.tables import AdapterRow, MetricRow, TagRow, TriggerWordRow, VersionRow

TENANT = "acme"
VERSIONS: list[dict[str, Any]] = [
    {"adapter_id": "fox", "number": 1, "base_model": "emoji-sd", "metrics": {"clip_i": 0.5, "loss.unet": -1e-3}},
    {
        "adapter_id": "fox",
        "number": 2,
        "base_model": "emoji-sd",
        "metrics": {"clip_i": 0.75},
        "words": ["sks", "<fox>"],
    },
    {"adapter_id": "cat", "number": 1, "base_model": "Emoji-SDXL", "metrics": {}, "words": ["*", "Zwx 100%_a"]},
    {"adapter_id": "a-b", "number": 1, "base_model": 'it\'s "x" \\ ü', "metrics": {"clip_i": 2.0}, "method": "ti"},
]
TAGS = {"fox": ["animal", "orange"], "cat": ["animal"], "a-b": []}
DESCRIPTIONS = {"fox": "Our FOX, 100% orange_red", "cat": "", "a-b": "Ärger"}
ALL = {"fox/1", "fox/2", "cat/1", "a-b/1"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A database of either kind with the versions, and with the same of another tenant."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('filters') / 'registry.db'}"
    else:
        url = request.getfixturevalue("postgres").create_database()
    database = Database(url, MIGRATIONS)
    database.migrate()
    with database.transaction() as session:
        for tenant in (TENANT, "other"):
            _fill(session, tenant)
    with database.transaction(read_only=True) as session:
        yield session
    database.close()


def _fill(session: Session, tenant: str) -> None:
    for adapter, tags in TAGS.items():
        row = AdapterRow(tenant=tenant, adapter_id=adapter, description=DESCRIPTIONS[adapter], create_time=_day(1))
        session.add(row)
        session.flush()
        session.add_all(TagRow(tenant=tenant, adapter_id=adapter, tag=tag) for tag in tags)
    for day, version in enumerate(VERSIONS, 1):
        own = {"tenant": tenant, "adapter_id": version["adapter_id"], "number": version["number"]}
        row_fields = {
            "digest": f"sha256:{day:064x}",
            "manifest": "{}",
            "signatures": [],
            "base_model": version["base_model"],
            "base_model_digest": "sha256:" + "ab" * 32,
            "family": "stable-diffusion",
            "method": version.get("method", "dreambooth-lora"),
            "instance_prompt": "",
            "weights": [],
            "source_job": f"tenants/{tenant}/jobs/j1" if day == 1 else "",
            "create_time": _day(day),
        }
        session.add(VersionRow(**own, **row_fields))
        session.flush()
        session.add_all(MetricRow(**own, name=name, value=value) for name, value in version["metrics"].items())
        session.add_all(TriggerWordRow(**own, word=word) for word in version.get("words", []))


def _day(day: int) -> datetime:
    return datetime(2026, 1, day, 12, tzinfo=UTC)


def found(session: Session, text: str) -> set[str]:
    """The tenant's versions that pass a filter, found by their conditions and by each index that answers one."""
    tree = parse_filter(text)
    assert tree is not None
    condition = VERSION_FIELDS.condition(tree)
    names = _names(session, VersionRow.tenant == TENANT, condition)
    for limited, lookup in VERSION_FIELDS.lookups(tree, TENANT, limit=100):
        assert _names(session, limited, condition) == _names(session, lookup, condition) == names
    return names


def _names(session: Session, *conditions: Any) -> set[str]:
    rows = session.execute(select(VersionRow.tenant, VersionRow.adapter_id, VersionRow.number).where(*conditions)).all()
    assert {tenant for tenant, _, _ in rows} <= {TENANT}
    return {f"{adapter}/{number}" for _, adapter, number in rows}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('base_model.model = "emoji-sd"', {"fox/1", "fox/2"}),
        ("base_model.model=emoji-sd", {"fox/1", "fox/2"}),
        ("base_model.model = 'emoji-sd'", {"fox/1", "fox/2"}),
        ("base_model.model != emoji-sd", {"cat/1", "a-b/1"}),
        ("base_model.model = emoji*", {"fox/1", "fox/2"}),
        ('base_model.model = "Emoji*"', {"cat/1"}),
        ("base_model.model != emoji*", {"cat/1", "a-b/1"}),
        ("base_model.model = *", ALL),
        ("base_model.model:SDXL", {"cat/1"}),
        ("base_model.model:sd", {"fox/1", "fox/2", "cat/1"}),
        (r'base_model.model = "it\'s \"x\" \\ ü"', {"a-b/1"}),
        (r"base_model.model = 'it\'s \"*'", {"a-b/1"}),
        (r'base_model.model:"\\"', {"a-b/1"}),
        ("adapter = fox", {"fox/1", "fox/2"}),
        ("adapter = f*", {"fox/1", "fox/2"}),
        ("method = ti", {"a-b/1"}),
        ("family = stable-diffusion", ALL),
        ("source_job = tenants/acme/jobs/j1", {"fox/1"}),
        ("source_job:*", {"fox/1"}),
        ("NOT source_job:*", ALL - {"fox/1"}),
        (f"digest = sha256:{2:064x}", {"fox/2"}),
        (f'base_model.digest = "sha256:{"ab" * 32}"', ALL),
        ("trigger_words:sks", {"fox/2"}),
        ("trigger_words:s", set()),
        ("trigger_words:s*", {"fox/2"}),
        ('trigger_words:"<fox>"', {"fox/2"}),
        ("trigger_words:*", {"fox/2", "cat/1"}),
        (r'trigger_words:"\*"', {"cat/1"}),
        ('trigger_words:"Zwx 100%_a"', {"cat/1"}),
        ('trigger_words:"Zwx%"', set()),
        ('trigger_words:"zwx*"', set()),
        ("tags:animal", {"fox/1", "fox/2", "cat/1"}),
        ("tags:orange", {"fox/1", "fox/2"}),
        ("NOT tags:*", {"a-b/1"}),
        ("metrics.clip_i > 0.5", {"fox/2", "a-b/1"}),
        ("metrics.clip_i >= 0.5", {"fox/1", "fox/2", "a-b/1"}),
        ("metrics.clip_i < 2", {"fox/1", "fox/2"}),
        ("metrics.clip_i <= 0.5", {"fox/1"}),
        ("metrics.clip_i = 75e-2", {"fox/2"}),
        ("metrics.clip_i != 0.5", {"fox/2", "a-b/1"}),
        ("NOT metrics.clip_i = 0.5", {"fox/2", "a-b/1", "cat/1"}),
        ("metrics.clip_i:*", ALL - {"cat/1"}),
        ("metrics.loss.unet < -.0009", {"fox/1"}),
        ("metrics.other > 0", set()),
        ('create_time = "2026-01-02T12:00:00Z"', {"fox/2"}),
        ("create_time > 2026-01-02T12:00:00.000001Z", {"cat/1", "a-b/1"}),
        ("create_time <= 2026-01-02T14:00:00+02:00", {"fox/1", "fox/2"}),
        ("create_time != 2026-01-02T12:00:00.000000000Z", ALL - {"fox/2"}),
    ],
)
def test_a_comparison_finds_the_versions_it_means(session: Session, text: str, expected: set[str]) -> None:
    assert found(session, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapter = fox AND metrics.clip_i > 0.6", {"fox/2"}),
        ("adapter = cat OR metrics.clip_i > 0.6", {"cat/1", "fox/2", "a-b/1"}),
        ("NOT adapter = fox", {"cat/1", "a-b/1"}),
        ("NOT NOT adapter = fox", {"fox/1", "fox/2"}),
        ("NOT adapter = fox AND tags:animal", {"cat/1"}),
        ("NOT (adapter = fox AND tags:animal)", {"cat/1", "a-b/1"}),
        ("adapter = fox AND method = ti OR metrics.clip_i = 0.5", {"fox/1"}),
        ("(adapter = fox AND method = ti) OR metrics.clip_i = 0.5", {"fox/1"}),
        ("adapter = cat OR adapter = fox AND metrics.clip_i = 2.0", set()),
        ("adapter = cat OR (adapter = fox AND metrics.clip_i = 2.0)", {"cat/1"}),
        ("(adapter=cat)OR(NOT(tags:animal))", {"cat/1", "a-b/1"}),
        ("method = AND OR method = ti", {"a-b/1"}),
        ("trigger_words:sks AND trigger_words:'<fox>' AND tags:animal AND tags:orange", {"fox/2"}),
    ],
)
def test_or_binds_closer_than_and_as_aip_160_has_it(session: Session, text: str, expected: set[str]) -> None:
    assert found(session, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = fox", {"fox"}),
        ("name = a*", {"a-b"}),
        ('description:"100% orange_"', {"fox"}),
        ("description:fox", {"fox"}),
        ("description:oranger", set()),
        ("description:'%'", {"fox"}),
        ("description:_", {"fox"}),
        ("description:Ärg", {"a-b"}),
        ("description:ärg", set()),
        ('description = ""', {"cat"}),
        ("description:*", {"fox", "a-b"}),
        ("tags:animal AND create_time < 2027-01-01T00:00:00Z", {"fox", "cat"}),
    ],
)
def test_a_filter_of_adapters_finds_those_it_means(session: Session, text: str, expected: set[str]) -> None:
    tree = parse_filter(text)
    assert tree is not None
    query = select(AdapterRow.adapter_id).where(AdapterRow.tenant == TENANT, ADAPTER_FIELDS.condition(tree))
    assert set(session.scalars(query)) == expected


TERMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "adapter = fox": lambda v: v["adapter_id"] == "fox",
    "tags:animal": lambda v: "animal" in TAGS[v["adapter_id"]],
    "trigger_words:sks": lambda v: "sks" in v.get("words", []),
    "trigger_words:*": lambda v: bool(v.get("words")),
    "metrics.clip_i > 0.6": lambda v: v["metrics"].get("clip_i", 0) > 0.6,
    "metrics.clip_i != 0.5": lambda v: v["metrics"].get("clip_i", 0.5) != 0.5,
    "base_model.model:sd": lambda v: "sd" in v["base_model"].lower(),
    "method != ti": lambda v: v.get("method") != "ti",
}
Tree = tuple[str, Any, Any] | str
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.sampled_from(list(TERMS)),
    lambda tree: st.tuples(st.sampled_from(["AND", "OR", "NOT"]), tree, tree),
    max_leaves=MAX_TERMS // 2,
)


def written(tree: Tree) -> str:
    """The filter of a tree, with a parenthesis wherever one may stand."""
    if isinstance(tree, str):
        return tree
    operator, left, right = tree
    return f"(NOT {written(left)})" if operator == "NOT" else f"({written(left)} {operator} {written(right)})"


def holds(tree: Tree, version: dict[str, Any]) -> bool:
    """What a tree says of a version."""
    if isinstance(tree, str):
        return TERMS[tree](version)
    operator, left, right = tree
    if operator == "NOT":
        return not holds(left, version)
    return (all if operator == "AND" else any)(holds(part, version) for part in (left, right))


def depth(tree: Tree) -> int:
    """How many parentheses and NOTs stand around a term."""
    return 0 if isinstance(tree, str) else (2 if tree[0] == "NOT" else 1) + max(map(depth, tree[1:]))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(tree=TREES.filter(lambda tree: depth(tree) <= MAX_DEPTH and len(written(tree)) <= 2000))
def test_any_filter_means_on_a_database_what_it_says(session: Session, tree: Tree) -> None:
    expected = {f"{each['adapter_id']}/{each['number']}" for each in VERSIONS if holds(tree, each)}
    assert found(session, written(tree)) == expected


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("trigger_word:sks", 1, "no field 'trigger_word'; did you mean 'trigger_words'? there are adapter, "),
        ("adapter = fox AND metric.clip_i > 1", 19, "there is no field 'metric.clip_i'"),
        ("metrics > 1", 1, "metrics.NAME"),
        ("tags = style", 1, "tags does not take =; it takes :"),
        ("create_time:*", 1, "create_time does not take :; it takes = != < <= > >="),
        ("adapter < fox", 1, "adapter does not take <; it takes = != :"),
        ("metrics.clip_i > good", 1, "metrics.clip_i is compared with 'good'; it takes a finite number"),
        ("metrics.clip_i > 1*", 1, "it takes a finite number"),
        ("metrics.clip_i > nan", 1, "it takes a finite number"),
        ("metrics.clip_i > 1e999", 1, "it takes a finite number"),
        ("metrics.clip_i:0.5", 1, "right of : stands *"),
        ("create_time > 2026-01-01", 1, "it takes an RFC 3339 time such as 2026-01-31T12:00:00Z"),
        ("create_time > 2026-01-01T00:00:00", 1, "it takes an RFC 3339 time"),
        ("create_time > 2026-02-30T00:00:00Z", 1, "it takes an RFC 3339 time"),
        ("create_time > 0001-01-01T00:00:00+10:00", 1, "it takes an RFC 3339 time"),
        ("adapter = *fox", 11, "has a `*` before its end"),
        ('adapter = "f*x"', 11, "has a `*` before its end"),
        ("adapter", 8, "the filter ends; expected is one of = != < <= > >= :"),
        ("adapter = ", 11, "the filter ends; expected is a value"),
        ("adapter = fox cat", 15, "there is 'cat'; expected is AND or OR or the end"),
        ("adapter = fox and tags:x", 15, "there is 'and tags:x'; expected is AND or OR or the end"),
        ("(adapter = fox", 15, "the filter ends; expected is )"),
        ("adapter = fox)", 14, "there is ')'"),
        ("OR adapter = fox", 4, "there is 'adapter = fox'"),
        ('adapter = "fox', 11, "there is '\"fox'"),
        ("adapter == fox", 10, "there is '= fox'"),
        (f"{'(' * 21}adapter = fox{')' * 21}", 1, "nested too deep; at most 20 levels are allowed"),
        (f"{'NOT ' * 300}adapter = fox", 1117, "nested too deep"),
    ],
)
def test_a_wrong_filter_is_told_with_its_place_and_what_is_allowed(text: str, position: int, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        VERSION_FIELDS.condition(parse_filter(text))  # type: ignore[arg-type]  # none of them is empty
    (violation,) = caught.value.violations
    assert violation.field == "filter"
    assert violation.description.startswith(f"character {position}: ")
    assert words in violation.description
    assert caught.value.metadata["position"] == str(position)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a" * 2001, "has 2001 characters; at most 2000 are allowed"),
        (" OR ".join(["adapter = fox"] * 51), "has 51 comparisons; at most 50 are allowed"),
        ("adapter = 'a\0'", "NUL"),
    ],
)
def test_a_filter_has_limits(text: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_filter(text)
    assert caught.value.violations[0].field == "filter"
    assert words in caught.value.violations[0].description


def test_a_filter_at_its_limits_is_served(session: Session) -> None:
    deep = f"{'(' * MAX_DEPTH}adapter = fox{')' * MAX_DEPTH}"
    assert found(session, " OR ".join([deep, *["adapter = cat"] * (MAX_TERMS - 1)])) == {"fox/1", "fox/2", "cat/1"}


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_an_empty_filter_asks_for_nothing(text: str) -> None:
    assert parse_filter(text) is None


PIECES = ["adapter", "metrics.a", "=", "!=", ":", "<", "(", ")", "AND", "OR", "NOT", " ", '"', "'", "\\", "*", "é", "1"]


@settings(max_examples=500)
@given(text=st.lists(st.one_of(st.sampled_from(PIECES), st.characters(exclude_categories=["Cs"]))).map("".join))
def test_no_text_is_more_than_wrong(text: str) -> None:
    assert wrong_field(text) in (None, "filter")


def wrong_field(text: str) -> str | None:
    """The field that is told to be wrong; None when the filter is right."""
    try:
        tree = parse_filter(text)
        if tree is not None:
            VERSION_FIELDS.condition(tree)
    except InvalidArgumentError as error:
        return error.violations[0].field
    return None
