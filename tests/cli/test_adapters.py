"""`atelier adapters` against the registry's process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from atelier.cli.main import run
from atelier.client import RegistryClient
from tests.harness.files import BASE_DIGEST, WEIGHTS, adapter_files, version

pytestmark = pytest.mark.usefixtures("registry_environment")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def fox(registry: RegistryClient) -> dict[str, bytes]:
    """The adapter `fox` with two versions; the files of the second."""
    registry.create_adapter("fox", description="[bold]five images")
    registry.publish("fox", version(), adapter_files(1))
    registry.publish("fox", version(), adapter_files(2))
    return adapter_files(2)


@pytest.mark.usefixtures("fox")
def test_list_prints_a_row_for_each_adapter(capsys: Captured) -> None:
    assert run(["adapters", "list"]) == 0
    assert "[bold]five images" in capsys.readouterr().out


@pytest.mark.usefixtures("fox")
@pytest.mark.parametrize("arguments", [["--json", "adapters", "list"], ["adapters", "list", "--json"]])
def test_json_is_one_document_by_the_names_of_the_contract(arguments: list[str], capsys: Captured) -> None:
    assert run(arguments) == 0
    (adapter,) = json.loads(capsys.readouterr().out)["adapters"]
    assert adapter["latest_version"] == f"{adapter['name']}/versions/2"


@pytest.mark.usefixtures("fox")
def test_alias_names_a_version_and_show_tells_it(capsys: Captured) -> None:
    assert run(["adapters", "alias", "fox", "prod", "1", "--json"]) == 0
    alias = json.loads(capsys.readouterr().out)
    assert run(["adapters", "show", "fox", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["aliases"] == [alias]
    assert [each["name"].rpartition("/")[2] for each in shown["versions"]] == ["2", "1"]
    assert run(["adapters", "show", "fox"]) == 0
    assert "clip_i 0.875" in capsys.readouterr().out


@pytest.mark.usefixtures("fox")
def test_alias_with_an_old_etag_is_refused(capsys: Captured) -> None:
    assert run(["adapters", "alias", "fox", "prod", "1", "--json"]) == 0
    etag = json.loads(capsys.readouterr().out)["etag"]
    assert run(["adapters", "alias", "fox", "prod", "2", "--etag", etag]) == 0
    assert run(["adapters", "alias", "fox", "prod", "1", "--etag", etag]) == 1
    assert "[ETAG_MISMATCH]" in capsys.readouterr().err


def test_pull_writes_the_files_of_a_version(fox: dict[str, bytes], tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    assert run(["adapters", "pull", "fox@2", "--out", str(out), "--json"]) == 0
    files = [Path(path) for path in json.loads(capsys.readouterr().out)["files"]]
    assert {str(path.relative_to(out)): path.read_bytes() for path in files} == fox


def test_an_unknown_adapter_is_one_line_and_status_1(tmp_path: Path, capsys: Captured) -> None:
    assert run(["adapters", "pull", "wolf", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.endswith("[ADAPTER_NOT_FOUND]")
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("fox")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "taken").write_text("")
    assert run(["adapters", "pull", "fox", "--out", str(tmp_path / "taken" / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "taken" in line


def printed(capsys: Captured, *arguments: str) -> Any:
    """The JSON document of a command that succeeds."""
    assert run(["--json", "adapters", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def ids(items: list[dict[str, Any]]) -> list[str]:
    """The last parts of names."""
    return [each["name"].rpartition("/")[2] for each in items]


def line(capsys: Captured, *arguments: str, status: int = 1) -> str:
    """What a command that fails tells last."""
    assert run(["adapters", *arguments]) == status
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("fox")
def test_adapters_are_tagged_and_found_by_their_tags(registry: RegistryClient, capsys: Captured) -> None:
    registry.create_adapter("cat")
    assert printed(capsys, "tag", "fox", "--add", "orange", "--add", "animal")["tags"] == ["animal", "orange"]
    assert printed(capsys, "tag", "fox", "--remove", "orange")["tags"] == ["animal"]
    assert ids(printed(capsys, "list", "--filter", "tags:animal")["adapters"]) == ["fox"]
    assert ids(printed(capsys, "list", "--order-by", "name desc")["adapters"]) == ["fox", "cat"]
    assert run(["adapters", "list", "--filter", "tags:animal"]) == 0
    assert "animal" in capsys.readouterr().out
    assert "did you mean 'tags'?" in line(capsys, "list", "--filter", "tag:animal")


@pytest.mark.usefixtures("fox")
def test_versions_are_listed_of_one_adapter_or_of_all(registry: RegistryClient, capsys: Captured) -> None:
    registry.create_adapter("cat")
    registry.publish("cat", version(metrics={"clip_i": 0.9}), adapter_files(3))
    assert ids(printed(capsys, "versions", "fox")["versions"]) == ["2", "1"]
    best = printed(capsys, "versions", "--all", "--filter", "metrics.clip_i > 0.8", "--order-by", "metrics.clip_i desc")
    assert [each["name"].split("/")[3] for each in best["versions"]] == ["cat", "fox", "fox"]
    assert run(["adapters", "versions", "--all"]) == 0
    assert "clip_i 0.900" in capsys.readouterr().out
    for arguments in ([], ["fox", "--all"]):
        assert "either NAME or --all" in line(capsys, "versions", *arguments, status=2)


@pytest.mark.usefixtures("fox")
def test_history_tells_where_aliases_pointed(capsys: Captured) -> None:
    printed(capsys, "alias", "fox", "prod", "1")
    printed(capsys, "alias", "fox", "test", "1")
    printed(capsys, "alias", "fox", "prod", "2")
    assert "either VERSION or --delete" in line(capsys, "alias", "fox", "prod", status=2)
    assert printed(capsys, "alias", "fox", "prod", "--delete") == {}
    moves = printed(capsys, "history", "fox", "prod")["moves"]
    assert [(each["old_version"][-1:], each["new_version"][-1:]) for each in moves] == [
        ("2", ""),
        ("1", "2"),
        ("", "1"),
    ]
    assert len(printed(capsys, "history", "fox")["moves"]) == 4
    assert run(["adapters", "history", "fox"]) == 0
    assert "prod" in capsys.readouterr().out


@pytest.mark.usefixtures("fox")
def test_what_is_deleted_comes_back_until_it_is_purged(capsys: Captured) -> None:
    assert printed(capsys, "delete", "fox@2")["delete_time"]
    assert ids(printed(capsys, "versions", "fox")["versions"]) == ["1"]
    assert ids(printed(capsys, "versions", "fox", "--deleted")["versions"]) == ["2", "1"]
    assert run(["adapters", "versions", "fox", "--deleted"]) == 0
    assert "deleted" in capsys.readouterr().out
    assert printed(capsys, "undelete", "fox@2")["name"].endswith("/versions/2")
    assert line(capsys, "delete", "fox").endswith("[ADAPTER_HAS_VERSIONS]")
    assert "fox@3" in line(capsys, "delete", "fox@prod", status=2)
    assert printed(capsys, "delete", "fox", "--force")["purge_time"]
    assert printed(capsys, "list") == {"adapters": []}
    assert ids(printed(capsys, "list", "--deleted")["adapters"]) == ["fox"]
    assert printed(capsys, "undelete", "fox")["name"].endswith("/fox")
    printed(capsys, "delete", "fox", "--force")
    wanted = printed(capsys, "purge", "--dry-run")
    assert len(wanted["versions"]) == 2
    assert printed(capsys, "purge", "fox") == wanted
    assert printed(capsys, "purge") == {"adapters": [], "versions": []}
    assert line(capsys, "undelete", "fox").endswith("[ADAPTER_NOT_FOUND]")


@pytest.mark.usefixtures("fox")
def test_retention_is_set_tried_and_applied(registry: RegistryClient, capsys: Captured) -> None:
    assert printed(capsys, "retention", "fox")["retention"]["keep_last"] == 0
    tried = printed(capsys, "retention", "fox", "--keep-last", "1", "--dry-run")
    assert [name[-1] for name in tried["versions"]] == ["1"]
    assert not registry.adapter("fox").HasField("retention")
    assert printed(capsys, "retention", "fox", "--keep-last", "1")["versions"] == []
    assert registry.adapter("fox").retention.keep_last == 1
    assert printed(capsys, "retention", "fox", "--apply")["versions"] == tried["versions"]
    assert ids(printed(capsys, "versions", "fox")["versions"]) == ["2"]
    assert run(["adapters", "retention", "fox", "--keep-last", "3", "--keep-days", "30"]) == 0
    assert "the last 3 versions and versions of the last 30 days" in capsys.readouterr().out
    printed(capsys, "retention", "fox", "--keep-last", "0")
    assert not registry.adapter("fox").HasField("retention")


def test_what_is_exported_is_imported_again(
    fox: dict[str, bytes], registry: RegistryClient, tmp_path: Path, capsys: Captured
) -> None:
    for format_ in ("diffusers", "kohya"):
        out = tmp_path / format_
        (path,) = printed(capsys, "export", "fox@2", "--format", format_, "--out", str(out))["files"]
        assert (Path(path).read_bytes() == fox[WEIGHTS]) == (format_ == "diffusers")
        options = ["--adapter", f"from-{format_}", "--base", BASE_DIGEST, "--trigger", "sks", "--trigger", "fox"]
        imported = printed(capsys, "import", path, *options, "--instance-prompt", "a sks fox")
        assert (imported["method"], imported["instance_prompt"]) == ("imported", "a sks fox")
        assert imported["trigger_words"] == ["fox", "sks"]
        assert imported["weights"] == printed(capsys, "show", "fox")["versions"][0]["weights"]
    again = printed(capsys, "import", path, "--adapter", "from-kohya", "--base", BASE_DIGEST)
    assert again["name"].endswith("/from-kohya/versions/2")
    assert len(list(registry.versions(filter="trigger_words:sks"))) == 2


def test_an_import_needs_a_base_model_that_is_known(registry: RegistryClient, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "fox.safetensors").write_bytes(adapter_files()[WEIGHTS])
    arguments = ["import", str(tmp_path / "fox.safetensors"), "--adapter", "fox", "--base", "emoji-ds"]
    assert "did you mean 'emoji-sd'?" in line(capsys, *arguments, status=2)
    assert list(registry.adapters()) == []
