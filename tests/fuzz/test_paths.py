"""Paths of files and names of resources: what is accepted stays where it belongs, whatever is written in it.

Links play no part here: the registry writes no file under a path that a client gives. Contents lie in the object store
under their SHA-256, and only a client that downloads a version meets links, in its own folder.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atelier.errors import InvalidArgumentError, PermissionDeniedError
from atelier.pb.common.v1.common_pb2 import File
from atelier.rpc.call import Call, set_call
from atelier.rpc.names import ADAPTER, ALIAS, VERSION, ResourcePattern, check_id
from atelier.rpc.uploads import check_files
from services.registry.content import check_kind
from tests.fuzz.profiles import QUICK, THOROUGH

FOLDER = Path("/srv/versions/1")
CALLER = "acme"
ATTACKS = (
    *("", ".", "..", "/", "//", "../x.json", "/etc/passwd", "a/../../x.json", "a/..", "a/./x.json", "./x.json"),
    *("a//x.json", "x.json/", "~/x.json", "a\\..\\x.json", "C:\\x.json", "C:x.json", "\\\\host\\x.json", "..\\x.json"),
    *("a/\\x.json", "%2e%2e/x.json", "..%2fx.json", "a%00.json", "x.json#y", "x.json?y", "x.json;v"),
    *("file:///x.json", "s3://b/x.json", "x:y.json", "x\0.json", "x.json\0", "x.json\n", "\nx.json", "x\r.json"),
    *(" x.json", "x.json ", "x .json", "x\t.json", "．．/x.json", "x\u2215y.json", "\u202egnp.json", "é.json"),
    *("e\u0301.json", "\ufeffx.json", "x\u200b.json", "ⅹ.json", ".hidden.json", "a/.x.json", ".git/config.json"),
    *("-x.json", "x" * 200 + ".json", "a/" * 100 + "x.json", "$HOME/x.json", "`id`.json", "$(id).json", "x;id.json"),
    *("x|y.json", "x*.json", "x?.json", "'x'.json", '"x".json', "{x}.json"),
)
HARMLESS = ("x.json", "samples/0.png", "a/b/c/d.txt", "A_b-c.1.md", "unet/model-00001-of-00002.safetensors")

# Text in which parts of attacks stand beside each other.
_PARTS = st.sampled_from(
    ["..", ".", "/", "\\", "%2e", "%2f", "#", "?", "\0", "\n", "~", ":", "é", "a", "x.json", "-", "_"]
)
TEXTS = st.one_of(st.lists(_PARTS, max_size=8).map("".join), st.text(max_size=30), st.from_regex(r"[a-z./_-]{1,20}"))
# Half of these are accepted.
PATHS = st.one_of(TEXTS, st.from_regex(r"([A-Za-z0-9_.%-]{1,5}/)?[A-Za-z0-9_.-]{1,6}\.(json|png|txt)", fullmatch=True))


@pytest.fixture(autouse=True, scope="module")
def call() -> None:
    """A call by the tenant `acme`."""
    set_call(Call(tenant=CALLER, subject="fuzz", correlation_id="0"))


def is_accepted(path: str) -> bool:
    """Whether a file of this path may be declared. No other error than ours, whatever the path is."""
    try:
        check_files([File(path=path, size_bytes=1, sha256="0" * 64)], "files", max_file_bytes=1)
        check_kind(File(path=path, size_bytes=1), "files[0]")
    except InvalidArgumentError:
        return False
    except ValueError:  # protobuf itself takes no half of a surrogate pair
        assert any("\ud800" <= character <= "\udfff" for character in path)
        return False
    return True


@pytest.mark.parametrize("path", ATTACKS)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    assert not is_accepted(path)


@pytest.mark.parametrize("path", HARMLESS)
def test_plain_paths_are_accepted(path: str) -> None:
    assert is_accepted(path)


def check_path(path: str) -> None:
    """An accepted path joined below a folder stays in it, for every system and after every decoding."""
    if not is_accepted(path):
        return
    joined = FOLDER / path
    assert joined.resolve().is_relative_to(FOLDER)
    assert joined != FOLDER
    assert PurePosixPath(path).as_posix() == path  # nothing is left out: one path, one place
    assert not PureWindowsPath(path).is_absolute()
    assert not PureWindowsPath(path).drive
    assert ".." not in PureWindowsPath(path).parts
    assert unquote(path) == path == quote(path)
    assert unicodedata.normalize("NFKC", path) == path


@given(PATHS)
@example("a/x.json")
@QUICK
def test_accepted_paths_stay_below_their_folder(path: str) -> None:
    check_path(path)


@pytest.mark.slow
@given(PATHS)
@THOROUGH
def test_many_accepted_paths_stay_below_their_folder(path: str) -> None:
    check_path(path)


@pytest.mark.parametrize("pattern", [ADAPTER, VERSION, ALIAS], ids=lambda pattern: pattern.pattern)
@pytest.mark.parametrize("bad", [*ATTACKS, "a/b", "A", "a_b", "x" * 64])
def test_ids_that_lead_elsewhere_are_refused(pattern: ResourcePattern, bad: str) -> None:
    name = pattern.pattern.replace("{tenant}", "-").replace("{adapter}", bad).replace("{version}", "1")
    with pytest.raises(InvalidArgumentError):
        pattern.parse(name.replace("{alias}", "a"), "name")
    with pytest.raises(InvalidArgumentError):
        check_id(bad, "id")


def check_name(name: str) -> None:
    """A name is refused, or belongs to the caller and is written in one way only."""
    for pattern in (ADAPTER, VERSION, ALIAS):
        try:
            ids = pattern.parse(name, "name")
        except (InvalidArgumentError, PermissionDeniedError):
            continue
        assert ids["tenant"] == CALLER
        assert name in (pattern.format(**ids), pattern.format(**{**ids, "tenant": "-"}))
        assert not set("/\\%.#\0\n") & set("".join(ids.values()))


_IDS = st.one_of(TEXTS, st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True), st.sampled_from(["-", CALLER, "other"]))
NAMES = st.one_of(
    TEXTS,
    st.builds("tenants/{}/adapters/{}".format, _IDS, _IDS),
    st.builds("tenants/{}/adapters/{}/versions/{}".format, _IDS, _IDS, _IDS),
)


@given(NAMES)
@example("tenants/-/adapters/fox\n")
@example("tenants/acme/adapters/fox/versions/1")
@QUICK
def test_accepted_names_are_the_callers_own(name: str) -> None:
    check_name(name)


@pytest.mark.slow
@given(NAMES)
@THOROUGH
def test_many_accepted_names_are_the_callers_own(name: str) -> None:
    check_name(name)
