"""The manifest: everything that a version is, as canonical JSON whose SHA-256 is the version's identity.

Canonical means: keys sorted, no white space, UTF-8 without escapes that JSON does not need, numbers as Python's
`repr` writes them. The number of the version and its adapter are not in it: the same content that was made by the
same job, or by none, has the same digest wherever it is published.
"""

from __future__ import annotations

import hashlib
import json

from atelier.pb.registry.v1 import registry_pb2 as pb

FORMAT = "atelier.adapter/v1"


def canonical_manifest(version: pb.Version) -> bytes:
    """The manifest of a version, of which only the fields that the publisher sets are read."""
    manifest = {
        "format": FORMAT,
        "base_model": {"model": version.base_model.model, "digest": version.base_model.digest},
        "method": version.method,
        "instance_prompt": version.instance_prompt,
        "files": [
            {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in sorted(version.files, key=lambda file: file.path)
        ],
        "metrics": dict(version.metrics),
        "source_job": version.source_job,
    }
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_of(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
