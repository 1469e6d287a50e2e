"""The registry as a process, over any S3 server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atelier.client.base_models import BaseModelClient
from atelier.errors import UnavailableError
from atelier.local.process import wait_until
from atelier.pb.registry.v1.base_models_pb2 import BaseModelDescription
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import OPERATOR
from atelier.storage.blobs import S3Config
from tests.harness.files import fake_base
from tests.harness.service import ServiceProcess

BUCKET = "atelier"
"""For all servers of a run: SeaweedFS sets several volumes of its few aside for every bucket."""
OPERATOR_TENANT = "operators"


class RegistryServer(ServiceProcess):
    """A registry whose database and log are in `folder`.

    Args:
        folder: the same folder again brings the same registry back.
        s3: where the bytes are.
        key_file: signs the tokens.
        options: more command-line options.
    """

    def __init__(self, folder: Path, s3: S3Config, key_file: Path, options: Mapping[str, object] | None = None) -> None:
        self.s3 = s3
        every = {
            "database-url": f"sqlite:///{folder / 'registry.db'}",
            "spool-folder": folder / "spool",
            "s3-endpoint": s3.endpoint,
            "s3-bucket": s3.bucket,
            "s3-access-key": s3.access_key,
            "signing-key-file": key_file,
            **(options or {}),
        }
        self.database_url = str(every["database-url"])
        self.spool_folder = folder / "spool"
        env = {"ATELIER_REGISTRY_S3_SECRET_KEY": s3.secret_key}
        super().__init__("services.registry", folder, TokenAuthority.from_file(key_file), every, env)

    def start(self) -> None:
        """Starts the process, waits until it serves, and tells it of the base model of `files.version()`."""
        super().start()
        wait_until(self._is_told, timeout_seconds=30, what="the registry knows the base model")

    def register(self, base_model: BaseModelDescription) -> BaseModelDescription:
        """Tells the registry of a base model, as its operator."""
        with self.connect(OPERATOR_TENANT, OPERATOR) as connection:
            return BaseModelClient(connection).register(base_model)

    def _is_told(self) -> bool:
        try:
            self.register(fake_base())
        except UnavailableError:
            return False  # channels to an address that was dead just now wait before they connect again
        return True

    def wait_for_upload(self) -> None:
        """Returns when a PublishVersion call is being served."""
        wait_until(lambda: self.uploads() > 0, timeout_seconds=30, what="the upload has begun")

    def uploads(self) -> float:
        """How many PublishVersion calls are being served."""
        labels = 'grpc_method="PublishVersion",grpc_service="atelier.registry.v1.RegistryService"'
        return self.metrics().get(f"grpc_server_in_progress{{{labels}}}", 0)
