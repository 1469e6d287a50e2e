"""Signed URLs: what lets somebody without the store's keys read or write one object of it for a short time.

A signed PUT names the object's exact length and SHA-256 as headers that are part of the signature, so a store that
keeps to S3's rules takes those bytes and no others. Not every store does: whoever uses the object hashes it again.

A URL is as good as a password until it expires. It is never logged, and `repr` does not show it.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from atelier.storage.blobs import S3Config
from atelier.storage.database import utc_now

PUT_SECONDS = 900
"""How long a signed PUT may be begun."""
MAX_GET_SECONDS = 3600
MAX_PUT_BYTES = 5 * 1024**3
"""S3 takes no more in one request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedRequest:
    """An HTTP request that the store accepts from anybody until it expires."""

    url: str = field(repr=False)
    headers: dict[str, str]
    """To be sent exactly so: they are signed."""
    expire_time: datetime


class Presigner:
    """Signs requests for the objects of a bucket.

    Args:
        config: the bucket and the keys that sign.
        endpoint: URL at which clients reach the store, such as `https://s3.example.org`; empty when it is that of
            `config`. It is part of what is signed.
    """

    def __init__(self, config: S3Config, endpoint: str = "") -> None:
        self._root = f"{_checked(endpoint) or _endpoint_of(config)}/{config.bucket}"
        self._credentials = Credentials(config.access_key, config.secret_key)
        self._region = config.region

    def put(self, key: str, *, size_bytes: int, sha256: str) -> SignedRequest:
        """A PUT of exactly the bytes with this length and SHA-256."""
        checksum = base64.b64encode(bytes.fromhex(sha256)).decode()
        return self._sign(
            "PUT", key, {"content-length": str(size_bytes), "x-amz-checksum-sha256": checksum}, PUT_SECONDS
        )

    def get(self, key: str, *, lifetime_seconds: int) -> SignedRequest:
        """A GET of an object, or of a range of it."""
        return self._sign("GET", key, {}, lifetime_seconds)

    def _sign(self, method: str, key: str, headers: dict[str, str], lifetime_seconds: int) -> SignedRequest:
        expire_time = utc_now() + timedelta(seconds=lifetime_seconds)
        request = AWSRequest(method=method, url=f"{self._root}/{quote(key)}", headers=headers)
        S3SigV4QueryAuth(self._credentials, "s3", self._region, expires=lifetime_seconds).add_auth(request)
        return SignedRequest(url=request.url, headers=headers, expire_time=expire_time)


def _endpoint_of(config: S3Config) -> str:
    return f"{'https' if config.secure else 'http'}://{config.endpoint}"


def _checked(endpoint: str) -> str:
    url = urlsplit(endpoint)
    if endpoint and (url.scheme not in ("http", "https") or not url.netloc or url.path or url.query or url.fragment):
        raise ValueError(f"s3_public_endpoint: is {endpoint!r}; it must be a URL such as https://s3.example.org")
    return endpoint
