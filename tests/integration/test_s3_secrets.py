"""No secret is anywhere but where it must be: not in logs, errors, results, representations, or what others can see."""

import logging
import os
import re
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.bucket import BucketPlace
from helpers.cli import Program
from helpers.drill import PART_BYTES, hurry
from helpers.proxy import Fault, Proxy
from helpers.s3 import S3Server
from helpers.trees import write
from sandpoint.errors import SandpointError
from sandpoint.models import StoredFile
from sandpoint.settings import read_settings
from sandpoint.stores import open_store

TOKEN = "session-token-of-the-test"

_SIGNED = re.compile(r"(?:X-Amz-(?:Signature|Credential|Security-Token)=|Signature[=:]\s*)[0-9A-Za-z%]")


class Secrets:
    """What nobody may see."""

    def __init__(self, *values: str) -> None:
        self._values = values

    def assert_none_in(self, text: str, where: str) -> None:
        """Fail if one is in a text."""
        for value in self._values:
            assert value not in text, f"a secret is in {where}"
        found = _SIGNED.search(text)
        assert not found, f"a signature is in {where}: {text[max(0, found.start() - 200) : found.end()]}"


@pytest.fixture
def secrets(s3_server: S3Server) -> Secrets:
    return Secrets(s3_server.secret_key, TOKEN)


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter("%(name)s %(message)s").format(record))


@contextmanager
def all_logs() -> Iterator[list[str]]:
    """Have every logger that there is say all that it can; yields what they say."""
    handler = _Records()
    loggers = [logging.root, *map(logging.getLogger, [*logging.root.manager.loggerDict, "urllib3", "botocore"])]
    levels = [logger.level for logger in loggers]
    logging.root.addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    try:
        yield handler.texts
    finally:
        logging.root.removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Onlooker:
    """Looks at the arguments and the environment of all children of this process, as often as it can."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Onlooker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.001):
            for task in Path("/proc/self/task").iterdir():
                for pid in _read(task / "children").split():
                    arguments = _read(Path("/proc", pid, "cmdline"))
                    self.seen[arguments] = _read(Path("/proc", pid, "environ"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def build(tree: Path) -> None:
    write(tree / "file", "content\n")
    write(tree / "large", os.urandom(PART_BYTES + 1000))


@pytest.mark.parametrize("direct", [False, True], ids=["by URLs", "direct"])
def test_no_secret_in_logs_results_or_children(
    tmp_path: Path,
    s3_server: S3Server,
    s3_proxy: Proxy,
    secrets: Secrets,
    monkeypatch: pytest.MonkeyPatch,
    direct: bool,
) -> None:
    hurry(monkeypatch, timeout_s=30.0)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    # Loggers are there once what logs is loaded.
    BucketPlace(tmp_path / "first", s3_server).ids()
    place = BucketPlace(tmp_path / "here", s3_server, url=s3_proxy.url, direct=direct)
    build(place.tree)
    with all_logs() as logs, Onlooker() as onlooker:
        s3_proxy.fail(Fault.DROP, when=lambda request: "data.sqsh" in request.path)
        backup = place.create()
        (place.tree / "file").write_text("changed\n")
        restored = place.restore(backup.id, mode="overlay")
        place.unmount(undo=False)
        page = place.run(place.service.list)
    for result in (backup, restored, page):
        secrets.assert_none_in(f"{result!r}{result.model_dump_json()}", "a result")
    assert any(text.startswith("urllib3") for text in logs) or direct
    secrets.assert_none_in("\n".join(logs), "a log")
    assert any("mksquashfs" in arguments for arguments in onlooker.seen)
    for arguments, environment in onlooker.seen.items():
        secrets.assert_none_in(arguments, "a child's arguments")
        if "mksquashfs" in arguments:
            assert "AWS_" not in environment
    for path in (place.base / "state").rglob("*"):
        if path.is_file() and not path.name.endswith(".sqsh") and path.stat().st_size < 1 << 20:
            secrets.assert_none_in(path.read_text(errors="replace"), str(path))


@pytest.mark.parametrize("direct", [False, True], ids=["by URLs", "direct"])
@pytest.mark.parametrize("fault", [Fault.DROP, Fault.ERROR_500, Fault.CUT_ANSWER, Fault.FLIP_REQUEST])
def test_no_secret_in_an_error_or_its_traceback(
    tmp_path: Path,
    s3_server: S3Server,
    s3_proxy: Proxy,
    secrets: Secrets,
    monkeypatch: pytest.MonkeyPatch,
    direct: bool,
    fault: Fault,
) -> None:
    hurry(monkeypatch, timeout_s=30.0)
    place = BucketPlace(tmp_path / "here", s3_server, url=s3_proxy.url, direct=direct)
    write(place.tree / "file", "content\n")
    for after in range(2):
        s3_proxy.fail(fault, when=lambda request: request.method == "PUT", after=after, times=None)
        with pytest.raises(SandpointError) as failed:
            place.create()
        s3_proxy.heal()
        secrets.assert_none_in(f"{failed.value!r}{failed.value}", "an error")
        secrets.assert_none_in("".join(traceback.format_exception(failed.value)), "a traceback")


def test_no_secret_in_representations(s3_server: S3Server, secrets: Secrets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "account")
    settings = read_settings()
    assert settings.r2 is not None
    store = open_store("s3://bucket/prefix", settings)
    secrets.assert_none_in(f"{settings!r}{settings}{settings.model_dump_json()}{settings.model_dump()}", "settings")
    secrets.assert_none_in(f"{store!r}{store}", "a store")


def test_no_secret_in_grants(tmp_path: Path, s3_server: S3Server, secrets: Secrets) -> None:
    place = BucketPlace(tmp_path / "here", s3_server)
    backup_id = "01a20203-ccfa-78ff-9e6b-ea152183a64f"
    upload = place.run(place.backups.begin, backup_id)
    for size in (10, 40 << 20):
        grant = place.run(place.backups.grant_put, upload.layer_key, StoredFile(size=size, sha256="0" * 64))
        secrets.assert_none_in(f"{grant!r}{grant}", "a grant")
    place.run(place.backups.abandon, backup_id)


def test_no_secret_of_the_program(tmp_path: Path, s3_server: S3Server, secrets: Secrets) -> None:
    write(tmp_path / "tree" / "file", "content\n")
    environment = s3_server.environment() | {
        "SANDPOINT_STORE": f"s3://{s3_server.make_bucket()}",
        "SANDPOINT_S3_ENDPOINT_URL": s3_server.http_url,
        "SANDPOINT_STATE_DIR": str(tmp_path / "state"),
        "SANDPOINT_DEBUG": "1",
        "AWS_DEBUG": "1",
    }
    program = Program(**environment)
    made = program("create", str(tmp_path / "tree"), "--json")
    assert made.status == 0
    restored = program("restore", made.json["id"], "--json")
    assert restored.status == 0
    refused = program("list", "--json", AWS_SESSION_TOKEN=TOKEN, AWS_ACCESS_KEY_ID="AKNOBODY")
    assert refused.status == 10
    for finished in (made, restored, refused):
        secrets.assert_none_in(finished.out + finished.err, "what the program says")
