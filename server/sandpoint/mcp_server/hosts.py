"""Names and addresses in URLs and headers, in one form; which of them are this machine, and which this server."""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

_HOST = re.compile(
    r"(?P<name>[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?\.?|\[[0-9a-f:.]{2,45}\])(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostPort(NamedTuple):
    """A name in lower case or an address in its one form, without brackets; and the port, if one is told."""

    name: str
    port: int | None


def parse_host(text: str) -> HostPort | None:
    """Return what a `Host` header or the authority of a URL names; None where that is no host."""
    found = _HOST.fullmatch(text.lower())
    if found is None:
        return None
    name, port = found["name"], found["port"]
    if name.startswith("["):
        try:
            name = canonical(str(IPv6Address(name[1:-1])))
        except ValueError:
            return None
    else:
        name = canonical(name.removesuffix("."))
    return HostPort(name, None if port is None else int(port)) if port is None or int(port) < 1 << 16 else None


def canonical(name: str) -> str:
    """Return an address in its one form; an IPv4 address as such where IPv6 wraps it. Names stay."""
    try:
        address = ip_address(name.partition("%")[0])
    except ValueError:
        return name
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def is_loopback(name: str) -> bool:
    """Whether a name or an address can only be this machine."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(canonical(name)).is_loopback
    except ValueError:
        return False


def shown(name: str) -> str:
    """Return a name or an address as a URL has it."""
    return f"[{name}]" if ":" in name else name


@dataclass(frozen=True)
class AllowedHosts:
    """Which hosts are this server: a page of another one, whose name was made to lead here, says its own."""

    hosts: frozenset[HostPort]
    """A port of None stands for any."""
    is_local: bool
    """Whether names of this machine are meant."""
    origins: frozenset[str] = frozenset()
    """Of pages of other servers that may call this one."""

    def has(self, host: HostPort, address: str | None) -> bool:
        """Whether a request for a host, that came in on an address of this machine, is for this server."""
        if self.is_local and is_loopback(host.name):
            return True
        if HostPort(host.name, None) in self.hosts or host in self.hosts:
            return True
        return address is not None and host.name == canonical(address)

    def has_origin(self, origin: str, host: HostPort) -> bool:
        """Whether a page of an origin may call: those of this very host, and those that are named."""
        if origin.lower() in self.origins:
            return True
        parts = urlsplit(origin)
        own = parse_host(parts.netloc) if parts.scheme in _DEFAULT_PORTS and not parts.path else None
        if own is None:
            return False
        same_name = own.name == host.name or (is_loopback(own.name) and is_loopback(host.name))
        # Behind a proxy that does TLS the scheme is not known here.
        default = _DEFAULT_PORTS[parts.scheme]
        return same_name and (own.port or default) == (host.port or default)
