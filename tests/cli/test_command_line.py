"""The words of the command line, which scripts rely on, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from atelier.cli.main import cli, run
from atelier.cli.output import describe
from atelier.errors import FieldViolation, InvalidArgumentError, ResourceExhaustedError
from atelier.local.process import free_ports
from atelier.local.profile import save_profile

WORDS = {
    "up": "--base --data-dir --dino --port --scorer",
    "dataset create": "FOLDER --caption-column --json --name",
    "dataset list": "--json",
    "dataset show": "NAME --json",
    "train": "METHOD --adapter --base --class-prompt --concept --dataset --instance-prompt --json "
    "--placeholder-token --previews --recipe --set --validate-only --validation-prompt --watch",
    "submit": "BATCH_FILE --json --validate-only --watch",
    "jobs list": "--json",
    "jobs show": "JOB_ID --json",
    "jobs watch": "JOB_ID --json --previews",
    "jobs cancel": "JOB_ID --json",
    "adapters list": "--deleted --filter --json --order-by",
    "adapters show": "NAME --json",
    "adapters versions": "NAME --all --deleted --filter --json --order-by",
    "adapters alias": "NAME ALIAS_ID VERSION --delete --etag --json",
    "adapters history": "NAME ALIAS_ID --json",
    "adapters tag": "NAME --add --json --remove",
    "adapters pull": "REFERENCE --json --out",
    "adapters export": "REFERENCE --format --json --out",
    "adapters import": "FILE --adapter --base --instance-prompt --json --trigger",
    "adapters delete": "REFERENCE --force --json",
    "adapters undelete": "REFERENCE --json",
    "adapters purge": "NAME --dry-run --json",
    "adapters retention": "NAME --apply --dry-run --json --keep-days --keep-last",
    "bases register": "BASE --json",
    "bases list": "--json",
    "signing-key create": "PATH",
    "tokens create": "--description --expires-days --id --json --scope",
    "tokens list": "--json",
    "tokens rotate": "TOKEN_ID --json --overlap-hours",
    "tokens revoke": "TOKEN_ID",
    "tokens bootstrap": "--scope --signing-key-file --tenant",
    "registry gc": "--dry-run --json",
    "registry scrub": "--json --limit-bytes",
    "registry quota": "TENANT --json --max-bytes --max-versions",
    "generate": "--adapter --base --count --guidance --height --json --negative-prompt --out --prompt --scheduler "
    "--seed --steps --width",
}


def words_of(command: click.Command, path: str = "") -> dict[str, str]:
    if isinstance(command, click.Group):
        parts = [words_of(each, f"{path} {name}".strip()) for name, each in command.commands.items()]
        return {name: words for part in parts for name, words in part.items()}
    arguments = [each.name.upper() for each in command.params if isinstance(each, click.Argument) and each.name]
    options = [each.opts[0] for each in command.params if isinstance(each, click.Option)]
    return {path: " ".join([*arguments, *sorted(options)])}


def test_commands_and_options_are_the_promised_ones() -> None:
    assert words_of(cli) == WORDS


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for path in WORDS:
        assert run([*path.split(), "--help"]) == 0
        assert f"atelier {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset", "list"], "set ATELIER_TRAINER"),
        (["adapters", "list"], "set ATELIER_REGISTRY"),
        (["generate", "--prompt", "a fox", "--out", "x"], "set ATELIER_INFERENCE"),
    ],
)
def test_a_missing_address_says_what_to_set(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "atelier up" in captured.err
    assert captured.out == ""


def test_the_profiles_token_goes_only_to_the_profiles_services(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_profile({"registry": "a:1", "trainer": "b:1", "inference": "c:1", "token": "secret"})
    monkeypatch.setenv("ATELIER_REGISTRY", "elsewhere:1")
    assert run(["adapters", "list"]) == 1
    assert "no token for the registry service at elsewhere:1: set ATELIER_TOKEN" in capsys.readouterr().err


def test_a_service_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATELIER_REGISTRY", f"127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("ATELIER_TOKEN", "any")
    assert run(["adapters", "list"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith("[UNAVAILABLE]")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "dreambooth-lora", "--dataset", "d", "--adapter", "a", "--set", "rnk=3"], "rnk: is no hyperparam"),
        (["train", "dreambooth-lora", "--dataset", "d", "--adapter", "a", "--set", "rank=x"], "rank: is 'x'"),
        (["train", "dreambooth-lora", "--dataset", "d", "--adapter", "a", "--set", "rank"], "FIELD=VALUE"),
        (
            ["train", "lora", "--dataset", "d", "--adapter", "a", "--concept", "dataset=c;prompt=p"],
            "prompt: is no field",
        ),
        (["train", "dreambooth-lora", "--dataset", "d"], "Missing option '--adapter'"),
        (["generate", "--prompt", "p", "--out", "o", "--adapter", "fox:x"], "is no number"),
        (["generate", "--prompt", "p", "--out", "o", "--steps", "0"], "'--steps'"),
        (["generate", "--prompt", "p", "--out", "o", "--seed", "-1"], "'--seed'"),
        (["dataset", "create", "/nowhere", "--name", "n"], "does not exist"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_ends_with_status_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_an_error_tells_every_field_and_when_to_retry() -> None:
    more = [FieldViolation("job.config.rank", "is 0; allowed is 1 to 128")]
    wrong = InvalidArgumentError("job.method", "is unknown", more=more, reason="METHOD_UNKNOWN")
    assert describe(wrong) == (
        "Error: job.method: is unknown; job.config.rank: is 0; allowed is 1 to 128 [METHOD_UNKNOWN]"
    )
    busy = ResourceExhaustedError("the queue is full", retry_after_seconds=1.5)
    assert describe(busy) == "Error: the queue is full; retry in 1.5 s [RESOURCE_EXHAUSTED]"


def test_the_command_needs_none_of_the_services_packages() -> None:
    program = "import json, sys, atelier.cli.main; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    services_only = (
        "alembic botocore cryptography diffusers jwt lark minio numpy psutil psycopg ray safetensors sqlalchemy "
        "structlog torch transformers"
    )
    assert not {*services_only.split()} & {name.partition(".")[0] for name in json.loads(done.stdout)}
