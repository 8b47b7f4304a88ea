"""The sockets that a server listens on, and which of them only this machine reaches."""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.mcp_server.hosts import is_loopback, shown
from sandpoint.mcp_server.http_settings import MCP_PATH, HttpSettings

BACKLOG = 512

_REMEDY = (
    "whoever reaches it could read, restore and delete. Write a token into a file and name it in "
    "SANDPOINT_HTTP_TOKENS_FILE (make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'), or "
    "set SANDPOINT_HTTP_ISSUER; or listen on 127.0.0.1 only"
)


@dataclass(frozen=True)
class Listening:
    """Open sockets, and where they are."""

    sockets: Sequence[socket.socket]
    url: str
    """Of the server, as a client on this machine would write it."""
    is_local: bool
    """Whether only this machine reaches it, or any of its addresses: names of this machine are then meant."""


@contextmanager
def listening(settings: HttpSettings) -> Iterator[Listening]:
    """Listen where the settings say, for a block.

    Raises:
        InvalidBackupConfigError: Others could reach it, and need no token; or nobody can listen there, or somebody
            else does.
    """
    if settings.socket is not None:
        with _on_path(settings.socket) as opened:
            yield Listening([opened], f"http://localhost{MCP_PATH}", is_local=True)
        return
    addresses = _resolve(settings.host, settings.port)
    beyond = [address[0] for _, address in addresses if not is_loopback(str(address[0]))]
    if beyond and not settings.needs_login:
        raise InvalidBackupConfigError(f"host: others than this machine reach {settings.host}, and {_REMEDY}")
    opened_all: list[socket.socket] = []
    try:
        port = settings.port
        for family, address in addresses:
            opened_all.append(_open(family, (address[0], port, *address[2:]), settings.host))
            port = opened_all[0].getsockname()[1]
        is_any = any(address[0] in {"0.0.0.0", "::"} for _, address in addresses)  # noqa: S104 - compared, not bound
        name = "localhost" if is_any else settings.host
        yield Listening(opened_all, f"http://{shown(name)}:{port}{MCP_PATH}", is_local=is_any or not beyond)
    finally:
        for each in opened_all:
            each.close()


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, tuple[str | int, ...]]]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InvalidBackupConfigError(
            f"host: {host!r} is no address of this machine ({error}); write 127.0.0.1, or another that it has"
        ) from None
    # Where Python has no IPv6, its addresses are no strings.
    usable = [(family, address) for family, _, _, _, address in found if isinstance(address[0], str)]
    return list(dict.fromkeys(usable))


def _open(family: socket.AddressFamily, address: tuple[str | int, ...], host: str) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Each family has a socket of its own: what is checked is what is listened on.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise _explained(error, f"{shown(str(address[0]))}:{address[1]}", host) from None
    return opened


def _explained(error: OSError, where: str, host: str) -> InvalidBackupConfigError:
    if error.errno == errno.EADDRINUSE:
        return InvalidBackupConfigError(
            f"cannot listen on {where}: another program does; end it, or choose another port with --port"
        )
    if error.errno == errno.EACCES:
        return InvalidBackupConfigError(f"cannot listen on {where}: only root may below 1024; choose another --port")
    return InvalidBackupConfigError(f"cannot listen on {where} (host {host}): {error.strerror}")


@contextmanager
def _on_path(path: str) -> Iterator[socket.socket]:
    _clear_dead(path)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            opened.bind(path)
        except OSError as error:
            raise InvalidBackupConfigError(f"socket: cannot listen on {path}: {error.strerror or error}") from None
        finally:
            os.umask(before)
        inode = os.stat(path).st_ino
        opened.listen(BACKLOG)
        try:
            yield opened
        finally:
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
    finally:
        opened.close()


def _clear_dead(path: str) -> None:
    """Remove the socket of a server that ended without doing so itself."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise InvalidBackupConfigError(f"socket: {path} is there already, and no socket; name another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise InvalidBackupConfigError(f"socket: cannot listen on {path}: {error.strerror}") from None
    raise InvalidBackupConfigError(f"socket: another server listens on {path}; end it, or name another path")
