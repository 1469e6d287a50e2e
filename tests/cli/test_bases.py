"""`atelier bases` against the registry's process."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest

from atelier.cli.main import run
from atelier.rpc.scopes import ADMIN, OPERATOR
from tests.harness.families import tiny_stable_diffusion
from tests.harness.registry import RegistryServer

pytestmark = pytest.mark.usefixtures("registry_environment")

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def operator(
    registry_environment: None, registry_server: RegistryServer, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential for a tenant and for the installation, as `atelier up` gives one."""
    monkeypatch.setenv("ATELIER_TOKEN", registry_server.token(tenant, ADMIN, OPERATOR))


@pytest.mark.usefixtures("operator")
def test_a_folder_is_registered_and_listed(tmp_path: Path, capsys: Captured) -> None:
    name = f"tiny-{secrets.token_hex(4)}"
    folder = tiny_stable_diffusion(tmp_path / "base")
    (folder / "unet" / "config.json").write_text(json.dumps({"name": name}))
    assert run(["bases", "register", f"{name}={folder}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["component"] for each in told["components"]] == ["unet", "text_encoder"]
    assert run(["bases", "register", f"{name}={folder}"]) == 0
    assert f"{name} is {told['base_model']['digest']}; layers: unet 83, text_encoder 12" in capsys.readouterr().out
    assert run(["bases", "list"]) == 0
    assert name in capsys.readouterr().out
    assert run(["--json", "bases", "list"]) == 0
    listed = json.loads(capsys.readouterr().out)["base_models"]
    assert told["base_model"] in [each["base_model"] for each in listed]


@pytest.mark.usefixtures("operator")
@pytest.mark.parametrize(("base", "status"), [("tiny", 2), ("=x", 2), ("tiny=/nowhere", 1)])
def test_what_is_no_base_model_is_told(base: str, status: int, capsys: Captured) -> None:
    assert run(["bases", "register", base]) == status
    assert capsys.readouterr().err


def test_registering_takes_an_operator(tmp_path: Path, capsys: Captured) -> None:
    folder = tiny_stable_diffusion(tmp_path / "base")
    assert run(["bases", "register", f"tiny={folder}"]) == 1
    assert "[SCOPE_MISSING]" in capsys.readouterr().err
