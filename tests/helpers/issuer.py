"""A small OAuth authorisation server on loopback: its keys, its metadata, and the tokens that it would give out."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


class Issuer:
    """Serves until the block's end. `keys` are by id; those in `published` are told to whoever asks."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {}
        self.published: list[dict[str, Any]] = []
        self.asked: Counter[str] = Counter()
        self.is_down = False
        self.metadata: dict[str, Any] = {}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked[self.path] += 1
                content = issuer._content(self.path)
                self.send_response(500 if issuer.is_down else 404 if content is None else 200)
                body = json.dumps(content).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/tenant"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def _content(self, path: str) -> dict[str, Any] | None:
        if path == "/.well-known/oauth-authorization-server/tenant":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.metadata
        return {"keys": self.published} if path == "/tenant/keys" else None

    def add_key(self, key_id: str = "one", *, kind: str = "RSA", publish: bool = True, **fields: str) -> None:
        """Make a key."""
        key: Any
        if kind == "EC":
            key = ec.generate_private_key(ec.SECP256R1())
            told = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            told = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        self.keys[key_id] = key
        if publish:
            self.published.append({**told, "kid": key_id, "use": "sig"} | fields)

    def public_pem(self, key_id: str = "one") -> bytes:
        """Return a key as anybody may know it."""
        pem: bytes = self.keys[key_id].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(
        self,
        audience: str,
        *,
        scope: str = "sandpoint:read sandpoint:write",
        key_id: str = "one",
        algorithm: str = "RS256",
        headers: dict[str, Any] | None = None,
        **claims: Any,
    ) -> str:
        """Return a token; claims of None are left out."""
        now = int(time.time())
        said = {
            "iss": self.url,
            "aud": audience,
            "sub": "user",
            "client_id": "client",
            "scope": scope,
            "iat": now,
            "exp": now + 60,
        } | claims
        said = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(said, self.keys[key_id], algorithm=algorithm, headers={"kid": key_id} | (headers or {}))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
