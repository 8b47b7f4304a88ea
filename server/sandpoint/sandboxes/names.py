"""Names of sandboxes, and the list of those that a server may be asked for."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.settings import DOCKER_PREFIX, LOCAL, check_sandbox_name


def container_of(name: str) -> str | None:
    """Return what a sandbox's name says of its container: a name, an id or a label; None of this machine."""
    return name.removeprefix(DOCKER_PREFIX) if name != LOCAL else None


def check_name(name: str) -> str:
    """Return a sandbox's name.

    Raises:
        InvalidBackupConfigError: No sandbox can be called so.
    """
    try:
        return check_sandbox_name(name)
    except ValueError as error:
        raise InvalidBackupConfigError(f"sandbox: {error}") from None


class AllowedSandboxes:
    """The sandboxes that may be asked for, by shell patterns that match their whole names."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Take the patterns."""
        self._patterns = tuple(patterns)

    def check(self, name: str) -> str:
        """Return a name that is on the list; nothing is asked of any engine.

        Raises:
            InvalidBackupConfigError: It is not, or no sandbox can be called so.
        """
        if not self._matches(check_name(name)):
            raise InvalidBackupConfigError(
                f"sandbox: {name!r} is not among those that may be used here: {', '.join(self._patterns)}"
            )
        return name

    def check_container(self, reference: str, name: str) -> None:
        """See that what a container is really called is on the list too: an id or a label is no way around it.

        Args:
            reference: What was asked for.
            name: The container's name.

        Raises:
            InvalidBackupConfigError: It is not.
        """
        if not self._matches(DOCKER_PREFIX + name):  # whose container it is instead, is not for all to know
            raise InvalidBackupConfigError(
                f"sandbox: {DOCKER_PREFIX + reference!r} is a container whose name is not among those that may be used "
                f"here: {', '.join(self._patterns)}"
            )

    def _matches(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns)
