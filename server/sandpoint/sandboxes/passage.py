"""Files on their way between a store and an engine that runs elsewhere: through this server, for one call.

Only what the call was granted can be read or written, whatever the engine asks for.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import IO, TypeVar, cast

from pydantic import BaseModel

from sandpoint.engine import wire
from sandpoint.engine.checked import missing
from sandpoint.engine.relay import Relay
from sandpoint.engine.state import sync_directory
from sandpoint.errors import SandboxUnavailableError, StoreUnavailableError
from sandpoint.models import CaptureRequest, PathGrant, RelayGrant, StoredFile, WriteGrant

Model = TypeVar("Model")

_STREAMS = 16


class Passage:
    """The files of one call."""

    def __init__(self, relay: Relay | None, folder: str, check: Callable[[], None]) -> None:
        """Nothing may pass yet.

        Args:
            relay: What carries files to and from a store that the engine cannot reach.
            folder: For what waits to be carried there.
            check: May raise to stop.
        """
        self._relay = relay
        self._folder = folder
        self._check = check
        self._readable: dict[str, PathGrant | RelayGrant] = {}
        self._writable: dict[str, _Arriving] = {}
        self._streams: dict[int, Iterator[bytes]] = {}
        self._written: set[StoredFile] = set()
        self._scratch: str | None = None

    def translated(self, value: Model) -> Model:
        """Return an argument with leave that means something to the engine, and let what it names pass."""
        if isinstance(value, PathGrant | RelayGrant):
            key = value.path if isinstance(value, PathGrant) else value.key
            self._readable[key] = value
            return cast(Model, RelayGrant(key=key))
        if isinstance(value, tuple):
            return cast(Model, tuple(map(self.translated, value)))
        if not isinstance(value, BaseModel):
            return value
        changed = {name: self.translated(getattr(value, name)) for name in type(value).model_fields}
        if isinstance(value, CaptureRequest):
            self._scratch, changed["staging"] = value.staging, None
        return cast(Model, value.model_copy(update=changed))

    def granted(self, file: StoredFile, grant: WriteGrant) -> WriteGrant:
        """Let a file pass, and return leave that means something to the engine."""
        if not isinstance(grant, PathGrant | RelayGrant):
            self._written.add(file)  # the store itself sees what arrives there
            return grant
        key = grant.path if isinstance(grant, PathGrant) else grant.key
        self._writable[key] = _Arriving(file, grant, self._scratch or self._folder)
        return RelayGrant(key=key)

    def read(self, question: wire.AskBlock) -> bytes:
        """Return the next block of a file; empty at its end.

        Raises:
            SandpointError: It cannot be read.
        """
        if question.stream not in self._streams:
            if len(self._streams) >= _STREAMS:
                raise SandboxUnavailableError("the engine reads too many files at once")
            self._streams[question.stream] = self._blocks(question.key)
        self._check()
        return next(self._streams[question.stream], b"")

    def _blocks(self, key: str) -> Iterator[bytes]:
        grant = self._readable.get(key)
        if grant is None:
            raise _not_granted(key)
        for block in _read(grant.path) if isinstance(grant, PathGrant) else self._there().read(grant.key):
            for start in range(0, len(block), wire.MAX_BLOCK):
                yield block[start : start + wire.MAX_BLOCK]

    def write(self, message: wire.SendBlock, content: bytes) -> bool:
        """Take the next block of a file; return whether it was the last, and all is in the store.

        Raises:
            SandpointError: It cannot be written, or is not what was announced.
        """
        arriving = self._writable.get(message.key)
        if arriving is None:
            raise _not_granted(message.key)
        arriving.take(content)
        if message.last:
            self._written.add(arriving.finish(self._relay, self._check))
            del self._writable[message.key]
        return message.last

    def has_arrived(self, file: StoredFile) -> bool:
        """Whether a file was granted, and what came was just that, as far as can be told here."""
        return StoredFile(size=file.size, sha256=file.sha256) in self._written

    def close(self) -> None:
        """Drop what did not arrive whole."""
        for arriving in self._writable.values():
            arriving.drop()

    def _there(self) -> Relay:
        assert self._relay is not None, "a store that grants a relay has one"
        return self._relay


class _Arriving:
    """A file that arrives."""

    def __init__(self, announced: StoredFile, grant: PathGrant | RelayGrant, folder: str) -> None:
        self._announced = announced
        self._grant = grant
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def take(self, content: bytes) -> None:
        try:
            if self._file is None:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._file = tempfile.NamedTemporaryFile(dir=self._folder, prefix="arriving-", delete=False)  # noqa: SIM115
            self._file.write(content)
        except OSError as error:
            raise self._unwritable(error) from error
        self._digest.update(content)
        self._size += len(content)
        if self._size > self._announced.size:
            raise _other_than_announced()

    def finish(self, relay: Relay | None, check: Callable[[], None]) -> StoredFile:
        if (self._size, self._digest.hexdigest()) != (self._announced.size, self._announced.sha256):
            raise _other_than_announced()
        assert self._file is not None, "the last block is a block"
        try:
            self._file.flush()
            if isinstance(self._grant, PathGrant):
                self._keep(self._file, self._grant.path)
            else:
                assert relay is not None, "a store that grants a relay has one"
                relay.write(self._grant.key, self._file.name, check)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self.drop()
        return StoredFile(size=self._size, sha256=self._announced.sha256)

    @staticmethod
    def _keep(file: IO[bytes], path: str) -> None:
        os.fsync(file.fileno())
        os.rename(file.name, path)
        sync_directory(os.path.dirname(path))

    def drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            with suppress(FileNotFoundError):
                os.unlink(file.name)

    def _unwritable(self, error: OSError) -> StoreUnavailableError:
        where = self._grant.path if isinstance(self._grant, PathGrant) else self._folder
        return StoreUnavailableError(f"{where} cannot be written: {error.strerror or error}; free some space there")


def _read(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while block := file.read(wire.MAX_BLOCK):
                yield block
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise StoreUnavailableError(f"{path} cannot be read: {error.strerror}") from error


def _not_granted(key: str) -> SandboxUnavailableError:
    return SandboxUnavailableError(f"the engine asked for {key[:200]!r}, which this operation does not use")


def _other_than_announced() -> SandboxUnavailableError:
    return SandboxUnavailableError("the engine sent another file than it had announced; nothing of it was kept")
