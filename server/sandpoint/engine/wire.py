"""What a server and an engine in a process of its own say to each other: lines of JSON, some with bytes behind them.

A message is one line; `bytes` tells how many bytes of a file follow it. Either side may be told nonsense by the other:
lengths have limits, and what arrives is held against these models.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from sandpoint.models import Strict

PROTOCOL = 1

MAX_LINE = 256 << 20
"""A comparison names every path that differs, and carries patches."""

MAX_BLOCK = 1 << 20

BEAT_S = 0.5
"""How often an engine shows that it is alive, while it is at work."""

Number = Annotated[int, Field(ge=0, lt=1 << 53)]
Length = Annotated[int, Field(ge=0, le=MAX_BLOCK)]


class ContainerPlace(Strict):
    """The root of a container, by the number that its first process has for the engine."""

    kind: Literal["container"] = "container"
    pid: Number
    stamped: bool


class FolderPlace(Strict):
    """A folder that stands for a root."""

    kind: Literal["folder"] = "folder"
    path: str


class Configure(Strict):
    """The first line to an engine: where it works, and where its state is."""

    kind: Literal["configure"] = "configure"
    protocol: int = PROTOCOL
    place: Annotated[ContainerPlace | FolderPlace, Field(discriminator="kind")]
    state: str
    shared: str | None
    sandbox_id: str
    cache_bytes: Number


class Request(Strict):
    """A call of a method of `Engine`, or of `READ_FILE` and `CLOSE_FILE`; `id` is new."""

    kind: Literal["request"] = "request"
    id: Number
    call: str
    args: dict[str, Any]


class Cancel(Strict):
    """A call is to stop. It ends with a result or an error all the same."""

    kind: Literal["cancel"] = "cancel"
    id: Number


class Answer(Strict):
    """The answer to a question. Of a file that is read: the next block, of 0 bytes at its end."""

    kind: Literal["answer"] = "answer"
    number: Number
    value: Any = None
    bytes: Length = 0


class Refusal(Strict):
    """The answer to a question is an error."""

    kind: Literal["refusal"] = "refusal"
    number: Number
    code: str
    message: str


class Hello(Strict):
    """The first line from an engine; `build` names the code that it is made of, empty where nobody noted it."""

    kind: Literal["hello"] = "hello"
    protocol: int
    build: str = ""


class Unfit(Strict):
    """Instead of `Hello`: the engine cannot work there."""

    kind: Literal["unfit"] = "unfit"
    message: str


class Beat(Strict):
    """The engine is alive."""

    kind: Literal["beat"] = "beat"


class Joined(Strict):
    """An `enter` has its place in the queue."""

    kind: Literal["joined"] = "joined"
    id: Number


class Advance(Strict):
    """Progress of a call."""

    kind: Literal["progress"] = "progress"
    id: Number
    phase: Annotated[str, Field(max_length=256)]
    done: Number
    total: Number | None = None


class AskGrant(Strict):
    """A question: leave to write a file; the answer is a grant."""

    kind: Literal["grant"] = "grant"
    id: Number
    number: Number
    role: Literal["layer", "manifest"]
    size: Number
    sha256: str


class AskFreezer(Strict):
    """A question: the sandbox is to be paused, or to go on. The answer to that is how many seconds it was paused."""

    kind: Literal["freezer"] = "freezer"
    id: Number
    number: Number
    pause: bool


class AskBlock(Strict):
    """A question: the next block of a file that was granted by a relay. `stream` is new for each reading."""

    kind: Literal["read"] = "read"
    id: Number
    number: Number
    stream: Number
    key: str


class SendBlock(Strict):
    """The next block of a file that goes to the store by a relay. A question where it is the last."""

    kind: Literal["write"] = "write"
    id: Number
    number: Number
    key: str
    last: bool
    bytes: Length


class Result(Strict):
    """The end of a call."""

    kind: Literal["result"] = "result"
    id: Number
    value: Any = None
    bytes: Length = 0


class Failure(Strict):
    """The end of a call by an error; without a code, one that is no `SandpointError`."""

    kind: Literal["error"] = "error"
    id: Number
    code: str | None
    message: str
    partly: bool = False


Question = AskGrant | AskFreezer | AskBlock | SendBlock
ToEngine = Configure | Request | Cancel | Answer | Refusal
FromEngine = Hello | Unfit | Beat | Joined | Advance | Question | Result | Failure

TO_ENGINE: TypeAdapter[ToEngine] = TypeAdapter(Annotated[ToEngine, Field(discriminator="kind")])
FROM_ENGINE: TypeAdapter[FromEngine] = TypeAdapter(Annotated[FromEngine, Field(discriminator="kind")])

Message = TypeVar("Message")


class WireError(Exception):
    """What arrived is no message of this protocol."""


def encoded(message: ToEngine | FromEngine) -> bytes:
    """Return the line of a message."""
    # Not pydantic's own JSON: paths may hold halves of surrogate pairs, for bytes that are no UTF-8.
    return json.dumps(message.model_dump(), separators=(",", ":")).encode() + b"\n"


class Incoming:
    """Takes messages out of a stream of bytes."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        """Take a function that returns at most so many of the next bytes, and none at the end."""
        self._read = read
        self._buffer = bytearray()

    def next(self, kinds: TypeAdapter[Message]) -> tuple[Message, bytes] | None:
        """Return the next message and the bytes behind it; None at the end.

        Raises:
            WireError: Something else arrived, or a part of a message.
            OSError: Nothing can be read any more.
        """
        line = self._line()
        if line is None:
            return None
        try:
            message = kinds.validate_python(json.loads(line))
        except ValidationError as error:
            raise WireError(
                f"a line is no message: {error.errors(include_url=False, include_input=False)[:3]}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise WireError(f"a line is no message: {line[:200]!r} ({error})") from None
        return message, self._exactly(getattr(message, "bytes", 0))

    def _line(self) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise WireError(f"a line is longer than {MAX_LINE} bytes")
            if not self._fill():
                if self._buffer:
                    raise WireError("the last line is torn")
                return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            if not self._fill():
                raise WireError("the bytes behind the last line are torn")
        found = bytes(self._buffer[:count])
        del self._buffer[:count]
        return found

    def _fill(self) -> bool:
        block = self._read(MAX_BLOCK)
        self._buffer += block
        return bool(block)
