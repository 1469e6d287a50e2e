"""The manifest: everything that a version is, as canonical JSON whose SHA-256 is the version's identity.

Canonical means: keys sorted, no white space, UTF-8 without escapes that JSON does not need, numbers as Python's
`repr` writes them. The number of the version and its adapter are not in it: the same content that was made by the
same job, or by none, has the same digest wherever it is published. Whoever has a Version message can write its
manifest again and compare the digest; nothing that the registry adds, such as summaries or times, is in it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from atelier.pb.registry.v1 import registry_pb2 as pb

FORMAT = "atelier.adapter/v1"


def canonical_manifest(version: pb.Version) -> bytes:
    """The manifest of a version, of which only the fields that the publisher sets are read."""
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "base_model": {"model": version.base_model.model, "digest": version.base_model.digest},
        "method": version.method,
        "instance_prompt": version.instance_prompt,
        "files": [
            {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
            for file in sorted(version.files, key=lambda file: file.path)
        ],
        "metrics": {name: value + 0.0 for name, value in version.metrics.items()},  # SQLite has no -0.0
        "source_job": version.source_job,
    }
    if version.trigger_words:  # absent when there are none: so versions from before the field keep their digests
        manifest["trigger_words"] = sorted(version.trigger_words)
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_of(manifest: bytes) -> str:
    """The identity of the version with this manifest."""
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"
