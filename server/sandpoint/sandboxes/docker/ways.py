"""The ways into a container, in the order in which they are tried."""

from dataclasses import dataclass
from typing import Literal, Protocol

from sandpoint.engine.operations import Engine
from sandpoint.engine.relay import Relay
from sandpoint.sandboxes.docker.host import Target

WayName = Literal["direct", "helper", "archive"]


class WayClosedError(Exception):
    """A way cannot be gone; the message says why, and what would open it."""


@dataclass(frozen=True)
class WaySettings:
    """What the ways need to know."""

    state_dir: str
    """The server's own state directory, for what cannot be kept on the engine."""
    cache_bytes: int
    relay: Relay | None
    """What carries files to and from a store that cannot be reached from a sandbox."""
    helper_image: str
    """With a tag, just that image; without one, an image that is built from this installation where it is missing."""
    helper_base: str = ""
    """The image that it is built upon: Python 3.11 or later on Debian. Empty: one of Docker's own for Python."""
    helper_idle_s: int = 600
    """How long a helper waits for another operation before it ends."""


class Way(Protocol):
    """A way into containers of one engine."""

    name: WayName

    def check(self, target: Target) -> str:
        """Return in a few words how a container would be reached; nothing is started that stays.

        Raises:
            WayClosedError: It cannot be.
        """
        ...

    def open(self, target: Target) -> "OpenEngine":
        """Return an engine for a container.

        Raises:
            WayClosedError: It cannot be reached this way; nothing is left of the attempt.
            SandpointError: It went away meanwhile.
        """
        ...


class OpenEngine(Engine, Protocol):
    """An engine for one container."""

    @property
    def is_alive(self) -> bool:
        """Whether the container still runs, and can be reached, as when it was opened. Quick: it is asked often."""
        ...
