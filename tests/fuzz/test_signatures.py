"""Versions that were changed after they were signed: whatever the change, they are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from atelier.errors import DataLossError, FailedPreconditionError
from atelier.manifest import canonical_manifest, digest_of
from atelier.pb.common.v1.common_pb2 import BaseModel, File
from atelier.pb.registry.v1 import registry_pb2 as pb
from atelier.signing import (
    Check,
    Policy,
    Signer,
    Verifier,
    create_key_files,
    key_id,
    pre_authentication_encoding,
    public_key_path,
)
from tests.fuzz.profiles import QUICK, THOROUGH
from tests.harness.files import version

KEY, OTHER_KEY = (Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
VERIFIER = Verifier([KEY.public_key()], Policy.REQUIRE)

_texts = st.text(st.characters(codec="utf-8"), max_size=12)
_shas = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
_files = st.builds(File, path=_texts, size_bytes=st.integers(0, 2**63 - 1), sha256=_shas)
_numbers = st.floats(allow_nan=False, allow_infinity=False)
_fields: dict[str, st.SearchStrategy[Any]] = {
    "base_model": st.builds(BaseModel, model=_texts, digest=_texts),
    "method": _texts,
    "instance_prompt": _texts,
    "files": st.lists(_files, max_size=3, unique_by=lambda file: file.path),
    "metrics": st.dictionaries(_texts, _numbers, max_size=3),
    "source_job": _texts,
    "trigger_words": st.lists(_texts, max_size=3, unique=True),
}
_versions = st.builds(pb.Version, **_fields)


def signed(unsigned: pb.Version, *keys: Ed25519PrivateKey) -> pb.Version:
    """As a registry with these keys publishes it."""
    manifest = canonical_manifest(unsigned)
    signatures = [signature for key in keys for signature in Signer(key).sign(manifest)]
    published = pb.Version(digest=digest_of(manifest), signatures=signatures)
    published.MergeFrom(unsigned)
    return published


def admit(verifier: Verifier, checked: pb.Version) -> Check:
    """What is found of a version that may be used."""
    found = verifier.check(checked)
    verifier.enforce(checked, found)
    return found


def reason_against(checked: pb.Version) -> str | None:
    """With which a version is refused; None when it is not."""
    try:
        assert admit(VERIFIER, checked) == Check.VALID
    except (DataLossError, FailedPreconditionError) as error:
        return error.reason
    return None


def meaning(of: pb.Version) -> tuple[object, ...]:
    """The fields that a publisher sets, compared as numbers and text are."""
    files = sorted((file.path, file.size_bytes, file.sha256) for file in of.files)
    base = (of.base_model.model, of.base_model.digest)
    return (base, of.method, of.instance_prompt, files, dict(of.metrics), of.source_job, sorted(of.trigger_words))


def check_that_what_is_signed_is_accepted(unsigned: pb.Version) -> None:
    assert reason_against(signed(unsigned, KEY)) is None


def check_that_other_fields_make_another_manifest(one: pb.Version, other: pb.Version) -> None:
    assert (canonical_manifest(one) == canonical_manifest(other)) == (meaning(one) == meaning(other))


def check_that_a_changed_field_is_refused(unsigned: pb.Version, name: str, value: Any, has_new_digest: bool) -> None:
    original = signed(unsigned, KEY)
    changed = pb.Version()
    changed.CopyFrom(original)
    changed.ClearField(name)
    changed.MergeFrom(pb.Version(**{name: value}))
    if meaning(changed) == meaning(original):
        return
    if has_new_digest:
        changed.digest = digest_of(canonical_manifest(changed))
    assert reason_against(changed) == ("SIGNATURE_INVALID" if has_new_digest else "DIGEST_MISMATCH")


def check_that_changed_bytes_are_refused(unsigned: pb.Version, place: float, mask: int) -> None:
    """A bit anywhere in the message: what is still accepted has neither another meaning nor another signature."""
    original = signed(unsigned, KEY)
    content = bytearray(original.SerializeToString())
    content[min(int(place * len(content)), len(content) - 1)] ^= mask
    try:
        changed = pb.Version.FromString(bytes(content))
    except DecodeError:
        return
    if any(not math.isfinite(value) for value in changed.metrics.values()):
        return  # the registry has no such numbers
    if reason_against(changed) is None:
        assert meaning(changed) == meaning(original)
        assert changed.digest == original.digest
        assert original.signatures[0] in changed.signatures


_ANY_FIELD = st.sampled_from(sorted(_fields)).flatmap(lambda name: st.tuples(st.just(name), _fields[name]))
_PLACES = st.floats(0, 1)
_MASKS = st.sampled_from([1 << bit for bit in range(8)])


@QUICK
@given(_versions)
def test_what_is_signed_is_accepted(unsigned: pb.Version) -> None:
    check_that_what_is_signed_is_accepted(unsigned)


@QUICK
@given(_versions, _versions)
def test_other_fields_make_another_manifest(one: pb.Version, other: pb.Version) -> None:
    check_that_other_fields_make_another_manifest(one, other)


@QUICK
@given(_versions, _ANY_FIELD, st.booleans())
def test_a_changed_field_is_refused(unsigned: pb.Version, change: tuple[str, Any], has_new_digest: bool) -> None:
    check_that_a_changed_field_is_refused(unsigned, *change, has_new_digest)


@QUICK
@given(_versions, _PLACES, _MASKS)
def test_changed_bytes_are_refused(unsigned: pb.Version, place: float, mask: int) -> None:
    check_that_changed_bytes_are_refused(unsigned, place, mask)


@pytest.mark.slow
@THOROUGH
@given(_versions, _ANY_FIELD, st.booleans())
def test_a_changed_field_is_refused_ever_again(
    unsigned: pb.Version, change: tuple[str, Any], has_new_digest: bool
) -> None:
    check_that_a_changed_field_is_refused(unsigned, *change, has_new_digest)


@pytest.mark.slow
@THOROUGH
@given(_versions, _PLACES, _MASKS)
def test_changed_bytes_are_refused_ever_again(unsigned: pb.Version, place: float, mask: int) -> None:
    check_that_changed_bytes_are_refused(unsigned, place, mask)


@pytest.mark.parametrize("bit", range(512))
def test_every_bit_of_a_signature_counts(bit: int) -> None:
    changed = signed(version(), KEY)
    content = bytearray(changed.signatures[0].signature)
    content[bit // 8] ^= 1 << bit % 8
    changed.signatures[0].signature = bytes(content)
    assert reason_against(changed) == "SIGNATURE_INVALID"


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    changed = signed(version(), KEY)
    changed.signatures[0].signature = (changed.signatures[0].signature + b"\0")[:length]
    assert reason_against(changed) == "SIGNATURE_INVALID"


def test_a_version_without_a_signature_by_a_trusted_key_is_refused_with_the_way_out() -> None:
    for refused in (signed(version()), signed(version(), OTHER_KEY)):
        assert reason_against(refused) == "SIGNATURE_MISSING"
    with pytest.raises(FailedPreconditionError, match="publish its files again as a new version, or trust the key"):
        admit(VERIFIER, signed(version()))


def test_a_signature_under_the_wrong_name_is_refused() -> None:
    forged = signed(version(), OTHER_KEY)
    forged.signatures[0].key_id = key_id(KEY.public_key())
    assert reason_against(forged) == "SIGNATURE_INVALID"


def test_a_bad_signature_beside_a_good_one_is_refused() -> None:
    forged = signed(version(), KEY, KEY)
    forged.signatures[1].signature = bytes(64)
    assert reason_against(forged) == "SIGNATURE_INVALID"


def test_while_a_key_is_replaced_both_are_trusted() -> None:
    verifier = Verifier([KEY.public_key(), OTHER_KEY.public_key()], Policy.REQUIRE)
    for keys in ([KEY], [OTHER_KEY], [KEY, OTHER_KEY]):
        assert admit(verifier, signed(version(), *keys)) == Check.VALID
    after = Verifier([OTHER_KEY.public_key()], Policy.REQUIRE)
    assert admit(after, signed(version(), KEY, OTHER_KEY)) == Check.VALID
    with pytest.raises(FailedPreconditionError):
        admit(after, signed(version(), KEY))


def test_warn_lets_pass_and_tells() -> None:
    verifier = Verifier([KEY.public_key()], Policy.WARN)
    forged = signed(version(), KEY)
    forged.signatures[0].signature = bytes(64)
    assert admit(verifier, forged) == Check.INVALID
    assert admit(verifier, signed(version())) == Check.MISSING
    assert admit(verifier, signed(version(), KEY)) == Check.VALID


@pytest.mark.parametrize("policy", list(Policy))
def test_under_every_policy_a_version_is_what_its_digest_says(policy: Policy) -> None:
    changed = signed(version(), KEY)
    changed.instance_prompt = "another"
    with pytest.raises(DataLossError) as raised:
        admit(Verifier([KEY.public_key()], policy), changed)
    assert raised.value.reason == "DIGEST_MISMATCH"


@pytest.mark.parametrize("policy", [Policy.WARN, Policy.REQUIRE])
def test_a_policy_without_a_key_is_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=f"signature_policy: is {policy}, but no key is trusted"):
        Verifier([], policy)


def test_keys_come_from_files_that_only_the_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "key.pem"
    made = create_key_files(path)
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        create_key_files(path)
    published = version()
    manifest = canonical_manifest(published)
    published.digest = digest_of(manifest)
    published.signatures.extend(Signer.from_file(path).sign(manifest))
    assert [signature.key_id for signature in published.signatures] == [made]
    assert admit(Verifier.from_files([public_key_path(path)], Policy.REQUIRE), published) == Check.VALID


@pytest.mark.parametrize(
    "content", [b"", b"secret", b"-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----\n"]
)
def test_other_files_are_refused_without_being_shown(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds no Ed25519 private key") as private:
        Signer.from_file(path)
    with pytest.raises(ValueError, match="holds no Ed25519 public key") as public:
        Verifier.from_files([path], Policy.REQUIRE)
    assert "secret" not in f"{private.value}{public.value}".replace(str(path), "")


def test_what_is_signed_is_the_encoding_of_the_standard() -> None:
    manifest = '{"a":"ü"}'.encode()
    expected = b"DSSEv1 39 application/vnd.atelier.adapter.v1+json 10 " + manifest
    assert pre_authentication_encoding(manifest) == expected
    (signature,) = Signer(KEY).sign(manifest)
    KEY.public_key().verify(signature.signature, expected)


def test_without_a_key_nothing_is_signed() -> None:
    assert Signer().sign(b"{}") == []
