"""Safetensors files of ill will and of chance: what our reader accepts is what everybody reads out of it.

The attacks are those of safetensors' own list (https://github.com/huggingface/safetensors/tree/main/attacks), what its
library lets pass, and files that are something else too.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import random
import struct
import tracemalloc
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import safetensors
from hypothesis import example, given
from hypothesis import strategies as st

from atelier.diffusion.formats.diffusers_form import PEFT_METADATA
from atelier.diffusion.safetensors_header import (
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    HeaderReader,
    check_safetensors_header,
)
from atelier.errors import InvalidArgumentError
from atelier.pb.common.v1.common_pb2 import File
from services.registry.archives import MAX_ENTRIES
from services.registry.content import MAX_TEXT_BYTES, open_check
from tests.fuzz.checking import verdict
from tests.fuzz.profiles import QUICK, THOROUGH
from tests.harness.files import safetensors as tensors_file
from tests.harness.files import safetensors_of, zipped

PATH = "x.safetensors"
ONE = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
EIGHT = struct.pack("<2f", 0.5, -1.0)
VALID = safetensors_of(ONE, EIGHT)


def entry(**changes: Any) -> dict[str, Any]:
    """A header of one tensor of two numbers, with changes."""
    return {"w": {**ONE["w"], **changes}}


def pair(first: tuple[int, int], second: tuple[int, int]) -> dict[str, Any]:
    """A header of two tensors at these places."""
    return {
        name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
        for name, (begin, end) in {"a": first, "b": second}.items()
    }


def number(value: float | bytes, dtype: str = "F32") -> bytes:
    """A file of one number."""
    content = value if isinstance(value, bytes) else struct.pack("<f" if dtype == "F32" else "<e", value)
    return safetensors_of(entry(dtype=dtype, shape=[1], data_offsets=[0, len(content)]), content)


def within(data: bytes) -> bytes:
    """A file whose only tensor ends with these bytes."""
    data = b"\0" * (-len(data) % 8) + data
    return safetensors_of(entry(dtype="I64", shape=[len(data) // 8], data_offsets=[0, len(data)]), data)


def wide(archive: bytes) -> bytes:
    """An archive with its end as zip64 has it, where the usual record does not tell where the directory is."""
    before, (count, size, offset) = archive[:-22], struct.unpack("<10xHII2x", archive[-22:])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(before), 1)
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, 2**32 - 1, 2**32 - 1, 0)
    return before + record + locator + end


def configured(config: object) -> bytes:
    """A file with this PEFT configuration."""
    text = config if isinstance(config, str) else json.dumps(config)
    return safetensors_of({"__metadata__": {"format": "pt", PEFT_METADATA: text}, **ONE}, EIGHT)


def empty_tensors(count: int) -> bytes:
    return safetensors_of({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(count)}, b"")


def named(name: str) -> bytes:
    return safetensors_of({name: ONE["w"]}, EIGHT)


def lengths(length: int, rest: bytes = b"{}") -> bytes:
    return struct.pack("<Q", length) + rest


def raw(text: str, data: bytes = EIGHT) -> bytes:
    return safetensors_of(text.encode(), data)


INNER = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'

BAD_CONFIGS: Sequence[object] = (
    *("by alice", [], "[" * 100_000),
    *({"unet.base_model_name_or_path": "/home/alice/sd"}, {"base_model_name_or_path": "alice/sd"}),
    *({"unet.r": 2, "unet.lora_alpha": 2, "author": "/home/alice"}, {"alice.r": 2}, {"unet.alice": None}),
    *({"unet.r": "2"}, {"unet.r": [2]}, {"unet.r": {"alice": 2}}, {"unet..r": 2}, {"unet.text_encoder.r": 2}),
    *({"bias": "alice"}, {"peft_type": "alice"}, {"task_type": "alice"}, {"megatron_core": "alice"}),
    *({"peft_version": "1.0 alice"}, {"init_lora_weights": "alice"}, {"revision": "alice"}, {"r": {"x": {}}}),
    *({"auto_mapping": {"parent_library": "alice"}}, {"runtime_config": {"x": "/home/alice"}}),
    *({"target_modules": "a photo of alice"}, {"target_modules": ["/home/alice"]}, {"target_modules": ["a@b.de"]}),
    *({"target_modules": [["alice"]]}, {"target_modules": ["x" * 257]}, {"layers_to_transform": ["alice"]}),
    *({"rank_pattern": {"/home/alice": 2}}, {"alpha_pattern": {"to_q": "alice"}}, {"layers_to_transform": [[["a"]]]}),
)

# Each opens as an archive wherever it stands: little enough comes behind it.
ARCHIVES: Mapping[str, bytes] = {
    "zip within": zipped(),
    "zip within, with a comment": zipped(b"x" * 1000),
    "zip within, NULs behind": zipped() + b"\0" * 8,
    "zip within, as much behind as may be": zipped() + b"\0" * 2**16,
    "zip within, whose directory is longer than what is searched": zipped(entries=2000) + b"\0" * 100,
    "zip64 within": wide(zipped()),
    "zip64 within, NULs behind": wide(zipped()) + b"\0" * 1000,
}

ATTACKS: Mapping[str, bytes] = {
    # What is no safetensors file.
    "nothing": b"",
    "seven bytes": b"\2\0\0\0\0\0\0",
    "length alone": lengths(2, b""),
    "length 0": lengths(0),
    "length 1": lengths(1, b"{"),
    "text": b"only text, and long enough",
    # Lengths.
    "huge length": lengths(2**63 + 5, b"{" * 100),
    "highest length": lengths(2**64 - 1, b"{" * 100),
    "negative length": struct.pack("<q", -2) + b"{}",
    "length beyond the end": lengths(1000, b"{" + b" " * 100),
    "header above the limit": lengths(MAX_HEADER_BYTES + 1, b"{" + b" " * MAX_HEADER_BYTES),
    # Truncation and what is too much.
    "cut within the header": VALID[:20],
    "cut behind the header": VALID[:-8],
    "cut within a number": VALID[:-1],
    "one byte more": VALID + b"\0",
    "another file behind": VALID + VALID,
    # JSON.
    "no JSON": raw("{not json}"),
    "an array": raw(f"[{{{INNER}}}]"),
    "leading space": raw(f' {{"w":{{{INNER}}}}}'),
    "leading newline": raw(f'\n{{"w":{{{INNER}}}}}'),
    "byte order mark": raw(f'\ufeff{{"w":{{{INNER}}}}}'),
    "padding of newlines": raw(f'{{"w":{{{INNER}}}}}\n\n'),
    "padding of NUL": raw(f'{{"w":{{{INNER}}}}}\0\0'),
    "text behind the object": raw(f'{{"w":{{{INNER}}}}} x'),
    "two objects": raw(f'{{"w":{{{INNER}}}}}{{}}'),
    "bad UTF-8": safetensors_of(b'{"w\xff":{' + INNER.encode() + b"}}", EIGHT),
    "overlong UTF-8": safetensors_of(b'{"w\xc0\xae":{' + INNER.encode() + b"}}", EIGHT),
    "UTF-16": safetensors_of(json.dumps(ONE).encode("utf-16-le"), EIGHT),
    "depth": safetensors_of(b'{"w":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", b""),
    "depth of objects": safetensors_of(b'{"w":' * 200_000 + b"1" + b"}" * 200_000, b""),
    "duplicate tensor": raw(f'{{"w":{{{INNER}}},"w":{{{INNER}}}}}'),
    "duplicate tensor in other letters": raw(f'{{"w":{{{INNER}}},"\\u0077":{{{INNER}}}}}'),
    "duplicate key within a tensor": raw(f'{{"w":{{"dtype":"I64",{INNER}}}}}'),
    "duplicate metadata": raw(f'{{"__metadata__":{{}},"__metadata__":{{"a":"b"}},"w":{{{INNER}}}}}'),
    "duplicate key within metadata": raw(f'{{"__metadata__":{{"format":"pt","format":"np"}},"w":{{{INNER}}}}}'),
    # Entries.
    "no tensors": raw("{}", b""),
    "metadata alone": raw('{"__metadata__":{"format":"pt"}}', b""),
    "tensor is a number": raw('{"w":1}'),
    "tensor is null": raw('{"w":null}'),
    "no shape": raw('{"w":{"dtype":"F32","data_offsets":[0,8]}}'),
    "another key": raw(f'{{"w":{{{INNER},"code":"x"}}}}'),
    "unknown type": safetensors_of(entry(dtype="PICKLE"), EIGHT),
    "type F64": safetensors_of(entry(dtype="F64", shape=[1]), EIGHT),
    "type in small letters": safetensors_of(entry(dtype="f32"), EIGHT),
    "type is a list": safetensors_of(entry(dtype=["F32"]), EIGHT),
    "shape is text": safetensors_of(entry(shape="2"), EIGHT),
    "shape of fractions": safetensors_of(entry(shape=[2.0]), EIGHT),
    "shape of truths": safetensors_of(entry(shape=[True, 2]), EIGHT),
    "shape of exponents": raw('{"w":{"dtype":"F32","shape":[2e0],"data_offsets":[0,8]}}'),
    "shape below zero": safetensors_of(entry(shape=[-2]), EIGHT),
    "two sides below zero": safetensors_of(entry(shape=[-1, -2]), EIGHT),
    "minus zero": raw('{"w":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}'),
    "overflow of the shape": safetensors_of(entry(shape=[2**32, 2**32, 2]), EIGHT),
    "overflow to the right size": safetensors_of(entry(shape=[2**62 + 2, 1]), EIGHT),
    "a number of 5,000 digits": raw(f'{{"w":{{"dtype":"F32","shape":[{"9" * 5000}],"data_offsets":[0,8]}}}}'),
    "many sides": safetensors_of(entry(shape=[1] * 1000 + [2]), EIGHT),
    "shape too small": safetensors_of(entry(shape=[1]), EIGHT),
    "shape too large": safetensors_of(entry(shape=[3]), EIGHT),
    "empty": safetensors_of({**ONE, "e": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]}}, EIGHT),
    "empty in a corner": safetensors_of({**ONE, "e": {"dtype": "F32", "shape": [9, 0], "data_offsets": [0, 0]}}, EIGHT),
    # Places.
    "places swapped": safetensors_of(entry(data_offsets=[8, 0]), EIGHT),
    "one place": safetensors_of(entry(data_offsets=[8]), EIGHT),
    "three places": safetensors_of(entry(data_offsets=[0, 8, 8]), EIGHT),
    "overlap in part": safetensors_of(pair((0, 8), (4, 12)), EIGHT + EIGHT[:4]),
    "overlap in whole": safetensors_of(pair((0, 8), (0, 8)), EIGHT),
    "hole between": safetensors_of(pair((0, 8), (12, 20)), EIGHT * 2 + EIGHT[:4]),
    "hole before": safetensors_of(entry(data_offsets=[4, 12]), EIGHT + EIGHT[:4]),
    "behind the end": safetensors_of(entry(data_offsets=[0, 8]), EIGHT[:4]),
    "far behind the end": safetensors_of(entry(shape=[2**40], data_offsets=[0, 2**42]), EIGHT),
    # Numbers.
    "NaN": number(math.nan),
    "infinity": number(math.inf),
    "minus infinity": number(-math.inf),
    "NaN that signals": number(b"\x01\x00\x80\x7f"),
    "NaN in half precision": number(math.nan, "F16"),
    "infinity in half precision": number(math.inf, "F16"),
    "NaN in bfloat16": number(b"\xc0\x7f", "BF16"),
    "minus infinity in bfloat16": number(b"\x80\xff", "BF16"),
    "NaN at the end of much": safetensors_of(
        entry(shape=[2**18], data_offsets=[0, 2**20]), b"\0" * (2**20 - 4) + struct.pack("<f", math.nan)
    ),
    # Names.
    **{
        f"name {name!r}": named(name)
        for name in (
            *("", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "C:\\x", ".hidden", "a..b", "x" * 257),
            *("a b", "a\0b", "a\nb", "%2e%2e", "$(id)", "`id`", "<script>", "é", "\u202etxt", "w#", "__import__('os')"),
        )
    },
    # Metadata.
    "metadata is text": safetensors_of({"__metadata__": "x", **ONE}, EIGHT),
    "metadata is null": safetensors_of({"__metadata__": None, **ONE}, EIGHT),
    "metadata of numbers": safetensors_of({"__metadata__": {"a": 1}, **ONE}, EIGHT),
    "metadata in metadata": safetensors_of({"__metadata__": {"a": {"b": "c"}}, **ONE}, EIGHT),
    "NUL in metadata": safetensors_of({"__metadata__": {"format": "p\0t"}, **ONE}, EIGHT),
    "half a surrogate pair in metadata": raw(f'{{"__metadata__":{{"format":"\\ud800"}},"w":{{{INNER}}}}}'),
    "metadata of kohya's scripts": safetensors_of(
        {"__metadata__": {"ss_dataset_dirs": '{"/home/alice/photos": {}}', "ss_session_id": "1"}, **ONE}, EIGHT
    ),
    "another format": safetensors_of({"__metadata__": {"format": "/home/alice"}, **ONE}, EIGHT),
    **{f"PEFT's metadata {i}": configured(config) for i, config in enumerate(BAD_CONFIGS)},
    # What is something else, too.
    "pickle": pickle.dumps({"w": [1.0] * 100}),
    "pickle of protocol 0": pickle.dumps({"w": [1.0] * 100}, protocol=0),
    "pickle of protocol 2": pickle.dumps({"w": [1.0] * 100}, protocol=2),
    "pickle that looks like a length": b"\x80\x02.\0\0\0\0\0{}" + b" " * 0x2E0280,
    "zip": zipped(),
    "zip behind": VALID + zipped(),
    **{name: within(archive) for name, archive in ARCHIVES.items()},
    "zip within, with a comment that begins one": within(zipped(b"PK\x05\x06" + b"x" * 100)),
    "more entries of a directory than are remembered": within(b"PK\x01\x02" * (MAX_ENTRIES + 2)),
    "a header of nothing but empty tensors": empty_tensors(200_000),
    "empty tensors, one too many": empty_tensors(MAX_TENSORS + 1),
    "as many empty tensors as there may be": empty_tensors(MAX_TENSORS),
    "one tensor too many": tensors_file({f"t{i}": (1,) for i in range(MAX_TENSORS + 1)}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_in_bounded_memory(name: str) -> None:
    content = ATTACKS[name]
    tracemalloc.start()
    refused = verdict(PATH, content, range(0, len(content), 2**16))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused is not None
    assert peak_bytes < 64 * 2**20


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pickle", "PICKLE_REFUSED"),
        ("pickle of protocol 2", "PICKLE_REFUSED"),
        ("zip", "PICKLE_REFUSED"),
        *((name, "PICKLE_REFUSED") for name in ARCHIVES),
        ("more entries of a directory than are remembered", "PICKLE_REFUSED"),
        ("a header of nothing but empty tensors", "SAFETENSORS_INVALID: files[0]: has a header of"),
        ("empty tensors, one too many", f"SAFETENSORS_INVALID: files[0]: has {MAX_TENSORS + 1} tensors"),
        ("as many empty tensors as there may be", "SAFETENSORS_INVALID: files[0]: tensor 't0' is empty"),
        ("zip within, with a comment that begins one", "PICKLE_REFUSED"),
        ("NaN in bfloat16", "WEIGHTS_NOT_FINITE"),
        ("metadata of kohya's scripts", "METADATA_REFUSED"),
        *((f"PEFT's metadata {i}", "METADATA_REFUSED") for i in range(len(BAD_CONFIGS))),
        ("leading space", "SAFETENSORS_INVALID"),
    ],
)
def test_attacks_are_told_as_what_they_are(name: str, reason: str) -> None:
    refused = verdict(PATH, ATTACKS[name]) or ""
    assert refused.startswith(reason)
    assert "alice" not in refused


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_would_be_opened_and_are_found_however_they_are_cut(name: str) -> None:
    content = ATTACKS[name]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert pickle.loads(archive.read("archive/data.pkl")) == {"weights": [1.0]}
    for step in (3, 7, 1000):
        assert (verdict(PATH, content, range(0, len(content), step)) or "").startswith("PICKLE_REFUSED: ")


def test_weights_that_have_the_signs_of_archives_by_chance_are_accepted() -> None:
    noise = random.Random(0).randbytes(2**24)
    assert verdict(PATH, within(noise), range(0, len(noise), 2**20)) is None
    signs = b"".join(noise[i : i + 100] + b"PK\x05\x06PK\x01\x02" for i in range(0, 2**16, 100))
    assert verdict(PATH, within(noise + signs)) is None


def test_archives_that_readers_do_not_find_are_weights() -> None:
    content = within(zipped() + b"\0" * (2**16 + 100))
    assert not zipfile.is_zipfile(io.BytesIO(content))
    assert verdict(PATH, content) is None


def test_refused_metadata_is_named_and_the_way_out_with_it() -> None:
    refused = verdict(PATH, ATTACKS["metadata of kohya's scripts"]) or ""
    assert "'ss_dataset_dirs', 'ss_session_id'" in refused
    assert "atelier adapters import" in refused
    assert "alice" not in refused


HARMLESS: Mapping[str, bytes] = {
    "one tensor": VALID,
    "padding of spaces": raw(f'{{"w":{{{INNER}}}}}     '),
    "header that begins like a pickle": safetensors_of(json.dumps(ONE).encode().ljust(0x280), EIGHT),
    "what diffusers writes": safetensors_of({"__metadata__": {"format": "pt"}, **ONE}, EIGHT),
    "what PEFT writes": configured({"unet.r": 2, "unet.base_model_name_or_path": None}),
    "names of layers": configured(
        {"target_modules": ["to_q", "to_out.0"], "rank_pattern": {"^mid_block.attentions.0.to_q": 4}, "r": 8}
    ),
    "what PEFT from sources writes": configured({"peft_version": "0.18.1.dev0@UNKNOWN"}),
    "tensors in another order than their bytes": safetensors_of(pair((8, 16), (0, 8)), EIGHT * 2),
    "largest finite numbers": safetensors_of(ONE, b"\xff\xff\x7f\x7f\xff\xff\x7f\xff"),
    "a scalar": number(1.0),
    "whole numbers of all bits": safetensors_of(entry(dtype="I64", shape=[1]), b"\xff" * 8),
    "the longest name": named("x" * 256),
    "PK in the numbers": safetensors_of(ONE, b"PK\x05\x06PK\x05\x06"),
    "as many tensors as there may be": tensors_file({f"t{i}": (1,) for i in range(MAX_TENSORS)}),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_files_are_accepted_and_the_library_agrees(name: str) -> None:
    assert verdict(PATH, HARMLESS[name]) is None
    _assert_library_agrees(HARMLESS[name])


@st.composite
def tensor_files(draw: st.DrawFn) -> bytes:
    """Files that are right, but for their numbers perhaps."""
    names = draw(
        st.lists(st.from_regex(r"[A-Za-z0-9_]{1,8}(\.[a-z0-9]{1,4})?", fullmatch=True), max_size=5, unique=True)
    )
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        dtype, shape = draw(st.sampled_from(sorted(ITEM_BYTES))), draw(st.lists(st.integers(1, 4), max_size=3))
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    if draw(st.booleans()):
        header["__metadata__"] = {"format": "pt"}
    data = draw(st.one_of(st.just(b"\x3c" * end), st.binary(min_size=end, max_size=end)))
    text = json.dumps(header).encode()
    return safetensors_of(text + b" " * (-len(text) % 8), data)


# Values that stand where others stood, in headers.
_VALUES = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-2, 20), st.integers(2**31, 2**65), st.floats(), st.text(max_size=5)),
        *(st.sampled_from(["F32", "F16", "BF16", "I64", "F64", "U8", "../x", "format", "__metadata__"]),),
    ),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=9), values, max_size=3),
    max_leaves=5,
)


@st.composite
def changed_headers(draw: st.DrawFn) -> bytes:
    """Files of which one value in the header is another."""
    content = draw(tensor_files())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if not header:
        return content
    name = draw(st.sampled_from(sorted(header)))
    if draw(st.booleans()):
        header[draw(st.one_of(st.just(name), st.text(max_size=9)))] = draw(_VALUES)
    else:
        header[name][draw(st.sampled_from(["dtype", "shape", "data_offsets", "format", "x"]))] = draw(_VALUES)
    return safetensors_of(header, content[8 + length :])


@st.composite
def changed_bytes(draw: st.DrawFn) -> bytes:
    """Files with a few bytes exchanged, taken out or put in."""
    content = bytearray(draw(tensor_files()))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(content)


FILES = st.one_of(tensor_files(), changed_headers(), changed_bytes(), st.binary(max_size=64))
CUTS = st.lists(st.integers(0, 600), max_size=8)


def check_file(content: bytes, cuts: list[int]) -> None:
    """The three promises: cuts change nothing, no other error than ours, and the library reads the same."""
    judged = verdict(PATH, content)
    assert verdict(PATH, content, cuts) == judged
    assert verdict(PATH, content, range(len(content))) == judged
    if judged is None:
        _assert_library_agrees(content)


@given(FILES, CUTS)
@example(VALID, [])
@example(raw('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{}}'), [9])
@QUICK
def test_files_of_chance_are_judged_alike_and_as_the_library_does(content: bytes, cuts: list[int]) -> None:
    check_file(content, cuts)


@pytest.mark.slow
@given(FILES, CUTS)
@THOROUGH
def test_many_files_of_chance(content: bytes, cuts: list[int]) -> None:
    check_file(content, cuts)


@given(st.binary(max_size=64), st.integers(0, 2**70))
@QUICK
def test_a_size_that_is_not_true_is_no_way_in(content: bytes, size_bytes: int) -> None:
    try:
        reader = HeaderReader(size_bytes, field="f")
        reader.feed(content)
        reader.finish()
    except InvalidArgumentError:
        return
    assert size_bytes == len(content)


def test_memory_does_not_grow_with_the_file() -> None:
    shape = (4096, 4096)
    header = json.dumps({"w": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * math.prod(shape)]}})
    start = struct.pack("<Q", len(header)) + header.encode()
    check = open_check(File(path=PATH, size_bytes=len(start) + 4 * math.prod(shape)), "f")
    piece = struct.pack("<f", 0.5) * 2**18
    tracemalloc.start()
    check.update(start)
    for _ in range(64):
        check.update(piece)
    assert check.finish() is not None
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < MAX_TEXT_BYTES


def _assert_library_agrees(content: bytes) -> None:
    """The safetensors library reads the same names, types, shapes and bytes."""
    header = check_safetensors_header(content)
    data = content[8 + int.from_bytes(content[:8], "little") :]
    ours = {
        name: (tensor.dtype, list(tensor.shape), data[tensor.begin : tensor.end])
        for name, tensor in header.tensors.items()
    }
    theirs = {
        name: (tensor["dtype"], list(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in safetensors.deserialize(content)
    }
    assert ours == theirs
