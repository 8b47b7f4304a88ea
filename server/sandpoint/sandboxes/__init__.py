"""Where an engine runs: next to the tree that it captures and restores."""

from sandpoint.engine.relay import Relay
from sandpoint.errors import InvalidBackupConfigError
from sandpoint.sandboxes.base import Sandbox
from sandpoint.settings import Settings

__all__ = ["Sandbox", "open_sandbox"]

_DOCKER = "docker:"


def open_sandbox(name: str, settings: Settings, *, relay: Relay | None, kept_out: tuple[str, ...]) -> Sandbox:
    """Return the sandbox of a name: `local`, or `docker:` and a container.

    Args:
        name: Which.
        settings: Of its state and its limits.
        relay: What carries files to and from a store that cannot be reached from it.
        kept_out: Directories of this machine that may not lie in one used, nor it in them.

    Raises:
        InvalidBackupConfigError: There is no such kind of sandbox.
    """
    if name == "local":
        from sandpoint.sandboxes.local import LocalSandbox

        return LocalSandbox(
            settings.state_dir,
            allowed_dirs=settings.allowed_dirs,
            kept_out=kept_out,
            cache_bytes=settings.cache_bytes,
            relay=relay,
        )
    if name.startswith(_DOCKER) and name != _DOCKER:
        from sandpoint.sandboxes.docker import DockerSandbox
        from sandpoint.sandboxes.docker.ways import WaySettings

        ways = WaySettings(
            state_dir=settings.state_dir,
            cache_bytes=settings.cache_bytes,
            relay=relay,
            helper_image=settings.docker_helper_image,
        )
        return DockerSandbox(
            name.removeprefix(_DOCKER), ways, way=settings.docker_way, allowed_dirs=settings.allowed_dirs
        )
    raise InvalidBackupConfigError(
        f"sandbox: {name!r} is unknown; use 'local', or 'docker:NAME' for a directory in a container"
    )
