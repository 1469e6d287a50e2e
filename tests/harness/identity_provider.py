"""An OpenID Connect provider on loopback: its discovery document, its keys, and the tokens that it signs."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

AUDIENCE = "atelier"
_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class IdentityProvider:
    """Serves from its construction until `close`. It begins with the RSA key `first`."""

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self.requests: list[str] = []
        """Paths that were asked for."""
        self.discovery: dict[str, Any] = {}
        """Replaces what the discovery document says."""
        self.add_key("first")
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.requests.append(self.path)
                document = provider._document(self.path)
                self.send_response(404 if document is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(document).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realm"

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_key(self, key_id: str, *, curve: bool = False) -> None:
        """Publishes another key: RSA, or on the curve P-256."""
        self._keys[key_id] = ec.generate_private_key(ec.SECP256R1()) if curve else rsa.generate_private_key(65537, 2048)

    def withdraw_key(self, key_id: str) -> None:
        """Publishes a key no more."""
        del self._keys[key_id]

    def public_key(self, key_id: str) -> bytes:
        """A key as everybody may know it, in PEM."""
        return self._keys[key_id].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, key_id: str = "first", *, signing_key: Any = None, algorithm: str = "", **claims: Any) -> str:
        """A token; `claims` replace what it says, None takes a claim away. By default a good one for `acme`."""
        usual = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ann",
            "exp": time.time() + 600,
            "tenant": "acme",
            "scope": "openid atelier:trainer",
        }
        every = {name: value for name, value in {**usual, **claims}.items() if value is not None}
        key = signing_key if signing_key is not None else self._keys[key_id]
        own_algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(every, key, algorithm=algorithm or own_algorithm, headers={"kid": key_id})

    def _document(self, path: str) -> dict[str, Any] | None:
        if path == "/realm/.well-known/openid-configuration":
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys", **self.discovery}
        if path == "/realm/keys":
            return {"keys": [_as_jwk(key_id, key) for key_id, key in self._keys.items()]}
        return None


def _as_jwk(key_id: str, key: _Key) -> dict[str, Any]:
    kind = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    public: Any = key.public_key()
    return {**kind.to_jwk(public, as_dict=True), "kid": key_id, "use": "sig"}
