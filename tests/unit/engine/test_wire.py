"""Messages as they go over the wire."""

import io

import pytest

from sandpoint.engine import calls, wire
from sandpoint.models import CompareRequest


def incoming(content: bytes, piece: int = 1 << 20) -> wire.Incoming:
    """What arrives, in pieces."""
    stream = io.BytesIO(content)
    return wire.Incoming(lambda count: stream.read(min(count, piece)))


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_messages_arrive_as_they_were_sent_with_the_bytes_behind_them(piece: int) -> None:
    block = wire.SendBlock(id=1, number=2, key="k\udcff\n", last=True, bytes=5)
    content = wire.encoded(block) + b"\n{x}\n" + wire.encoded(wire.Beat())
    arriving = incoming(content, piece)
    assert arriving.next(wire.FROM_ENGINE) == (block, b"\n{x}\n")
    assert arriving.next(wire.FROM_ENGINE) == (wire.Beat(), b"")
    assert arriving.next(wire.FROM_ENGINE) is None


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"[]\n",
        b'{"kind": "nothing"}\n',
        b'{"kind": "beat"',
        b'{"kind": "joined", "id": "1"}\n',
        b'{"kind": "joined", "id": -1}\n',
        b'{"kind": "write", "id": 1, "number": 1, "key": "k", "last": true, "bytes": 3}\nab',
        b'{"kind": "write", "id": 1, "number": 1, "key": "k", "last": true, "bytes": 99999999}\n',
        b"[" * 200_000 + b"\n",
        b'{"kind": "joined", "id": ' + b"9" * 10_000 + b"}\n",
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_message_is_an_error(content: bytes) -> None:
    with pytest.raises(wire.WireError):
        incoming(content).next(wire.FROM_ENGINE)


def test_a_line_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_LINE", 1000)
    arriving = wire.Incoming(lambda count: b"x" * 100)
    with pytest.raises(wire.WireError, match="longer than 1000"):
        arriving.next(wire.FROM_ENGINE)


def test_arguments_arrive_as_they_were_given() -> None:
    request = CompareRequest(manifests=(), layers=(), dir="/a\udcff", paths=("b",))
    call = calls.CALLS["compare"]
    sent = wire.Request(id=1, call="compare", args=call.pack({"request": request}))
    arrived = incoming(wire.encoded(sent)).next(wire.TO_ENGINE)
    assert arrived is not None
    assert isinstance(arrived[0], wire.Request)
    assert call.unpack(arrived[0].args) == {"request": request}


@pytest.mark.parametrize("args", [{}, {"request": 1}, {"request": {"dir": "/a"}}, {"request": {}, "more": 1}])
def test_other_arguments_are_refused(args: dict[str, object]) -> None:
    with pytest.raises(wire.WireError):
        calls.CALLS["compare"].unpack(args)


def test_every_call_takes_over_the_wire_what_its_signature_says() -> None:
    taken = {name: sorted(call.arguments) for name, call in calls.CALLS.items()}
    assert taken["enter"] == taken["leave"] == taken["id"] == []
    assert taken["capture"] == ["request"]
    assert taken["compare_contents"] == ["backup", "max_bytes", "other"]
    assert taken["prune"] == ["dry_run"]
    assert [name for name, call in calls.CALLS.items() if call.returns_file] == ["open_file"]
