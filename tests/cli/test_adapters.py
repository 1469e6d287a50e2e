"""`atelier adapters` against the registry's process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.client import RegistryClient
from tests.harness.files import adapter_files, version

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
