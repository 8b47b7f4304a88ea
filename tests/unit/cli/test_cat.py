import base64
import io
import json
import os
import threading
from collections.abc import Callable

import pytest
from anyio.streams.file import FileReadStream

from helpers.cli import ID, FakeService
from sandpoint.cli import cat as cat_module
from sandpoint.cli import main
from sandpoint.errors import BackupIntegrityError, InvalidBackupConfigError

Answer = Callable[..., FakeService]


class Stopped(BaseException):
    pass


def holding(content: bytes) -> FileReadStream:
    return FileReadStream(io.BytesIO(content))


def test_bytes_go_out_as_they_are(answer: Answer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    content = bytes(range(256)) * 20_000
    service = answer(open_file=holding(content))
    assert main(["cat", ID, "src/app.bin"]) == 0
    assert service.calls == [("open_file", {"backup_id": ID, "path": "src/app.bin"})]
    assert capfdbinary.readouterr() == (content, b"")


def test_an_empty_file_is_nothing(answer: Answer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    answer(open_file=holding(b""))
    assert main(["cat", ID, "empty"]) == 0
    assert capfdbinary.readouterr() == (b"", b"")


@pytest.mark.parametrize(
    ("content", "encoding", "said"),
    [
        ("é\n".encode(), "utf-8", "é\n"),
        (b"\xff\x00", "base64", base64.b64encode(b"\xff\x00").decode()),
    ],
)
def test_a_program_gets_text_or_base64(
    content: bytes, encoding: str, said: str, answer: Answer, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(open_file=holding(content))
    assert main(["cat", ID, "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "id": ID, "path": "x", "size_bytes": len(content), "encoding": encoding, "content": said,
    }  # fmt: skip


def test_json_holds_no_more_than_memory_should(
    answer: Answer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandpoint.cli.cat.MAX_JSON_BYTES", 10)
    answer(open_file=holding(b"x" * 11))
    assert main(["cat", ID, "x", "--json"]) == InvalidBackupConfigError.exit_status
    assert "leave --json out" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_an_error_comes_without_a_byte(answer: Answer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    answer(open_file=BackupIntegrityError("layer 1 was altered"))
    assert main(["cat", ID, "x"]) == BackupIntegrityError.exit_status
    assert capfdbinary.readouterr() == (b"", b"error: layer 1 was altered [BACKUP_INTEGRITY_FAILED]\n")


def test_a_reader_that_waits_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    try:
        checks = iter([None] * 40)

        def check() -> None:
            if next(checks, "no more") is not None:
                raise Stopped

        monkeypatch.setattr(cat_module, "_CHECK_EVERY_MS", 1)
        with pytest.raises(Stopped):
            cat_module._write(writer, bytes(1 << 20), check)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_reader_that_takes_its_time_gets_all() -> None:
    reader, writer = os.pipe()
    content = os.urandom(1 << 20)
    got: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    cat_module._write(writer, content, lambda: None)
    os.close(writer)
    thread.join()
    assert got == [content]
