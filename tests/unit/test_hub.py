"""A base model is a folder, or a model of the Hub: here one in the Hub's cache, since tests have no connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from atelier.diffusion.hub import find_model
from atelier.errors import InvalidArgumentError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of a model in a cache as the Hub's library lays it out."""
    repository = tmp_path / "models--acme--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["acme/tiny", "acme/tiny@main", f"acme/tiny@{REVISION}"])
def test_a_model_of_the_hub_is_found_by_its_id_and_revision(cached: Path, name: str) -> None:
    assert find_model(name) == cached


@pytest.mark.parametrize("name", ["acme/missing", "acme/tiny@other"])
def test_a_model_that_is_nowhere_is_an_error_with_its_name(cached: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name) as caught:
        find_model(name)
    assert caught.value.reason == "BASE_MODEL_NOT_FOUND"


def test_a_misspelt_folder_does_not_become_a_model_of_the_hub(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`acme/tiny` is in the cache, but where there is a folder `acme` a path is meant."""
    (cached / "acme").mkdir()
    monkeypatch.chdir(cached)
    with pytest.raises(InvalidArgumentError, match="acme/tiny is neither a folder nor of the form") as caught:
        find_model("acme/tiny")
    assert caught.value.reason == "BASE_MODEL_NOT_FOUND"


@pytest.mark.parametrize("name", ["a--b/c", "a/b..c", "-a/b", "a/b.git", f"a/{'b' * 100}"])
def test_an_id_that_the_hub_s_library_refuses_is_our_error(cached: Path, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{name} is no folder, .*HFValidationError") as caught:
        find_model(name)
    assert caught.value.reason == "BASE_MODEL_NOT_FOUND"


def test_what_is_neither_says_what_is_allowed() -> None:
    with pytest.raises(InvalidArgumentError, match=r"neither a folder nor of the form OWNER/MODEL"):
        find_model("/no/such/folder")
