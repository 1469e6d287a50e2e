"""The registry as a process, over any S3 server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atelier.rpc.identity import TokenAuthority
from atelier.storage.blobs import S3Config
from tests.harness.service import ServiceProcess

BUCKET = "atelier"
"""For all servers of a run: SeaweedFS sets several volumes of its few aside for every bucket."""


class RegistryServer(ServiceProcess):
    """A registry whose database, log and unfinished uploads are in `folder`.

    Args:
        folder: the same folder again brings the same registry back.
        s3: where the bytes are.
        key_file: signs the tokens.
        options: more command-line options.
    """

    def __init__(self, folder: Path, s3: S3Config, key_file: Path, options: Mapping[str, object] | None = None) -> None:
        self.spool_folder = folder / "spool"
        self.s3 = s3
        every = {
            "database-url": f"sqlite:///{folder / 'registry.db'}",
            "spool-folder": self.spool_folder,
            "s3-endpoint": s3.endpoint,
            "s3-bucket": s3.bucket,
            "s3-access-key": s3.access_key,
            "signing-key-file": key_file,
            **(options or {}),
        }
        env = {"ATELIER_REGISTRY_S3_SECRET_KEY": s3.secret_key}
        super().__init__("services.registry", folder, TokenAuthority.from_file(key_file), every, env)

    def unfinished_uploads(self) -> list[Path]:
        """The temporary folders of uploads that go on now."""
        return list(self.spool_folder.iterdir())
