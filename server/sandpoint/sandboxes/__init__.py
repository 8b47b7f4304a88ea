"""Where an engine runs: next to the tree that it captures and restores."""

from sandpoint.engine.relay import Relay
from sandpoint.sandboxes.base import Sandbox
from sandpoint.sandboxes.names import AllowedSandboxes, check_name, container_of
from sandpoint.settings import Settings, resolve

__all__ = ["AllowedSandboxes", "Sandbox", "open_sandbox"]


def open_sandbox(
    name: str,
    settings: Settings,
    *,
    relay: Relay | None,
    kept_out: tuple[str, ...],
    allowed: AllowedSandboxes | None = None,
) -> Sandbox:
    """Return the sandbox of a name: `local`, or `docker:` and a container.

    Args:
        name: Which.
        settings: Of its state and its limits.
        relay: What carries files to and from a store that cannot be reached from it.
        kept_out: Directories of this machine that may not lie in one used, nor it in them.
        allowed: What a container must be called to be used; None: anything.

    Raises:
        InvalidBackupConfigError: There is no such kind of sandbox.
    """
    container = container_of(check_name(name))
    if container is None:
        from sandpoint.sandboxes.local import LocalSandbox

        return LocalSandbox(
            settings.state_dir,
            allowed_dirs=None if settings.allowed_dirs is None else tuple(map(resolve, settings.allowed_dirs)),
            kept_out=kept_out,
            cache_bytes=settings.cache_bytes,
            relay=relay,
        )
    from sandpoint.sandboxes.docker import DockerSandbox
    from sandpoint.sandboxes.docker.ways import WaySettings

    ways = WaySettings(
        state_dir=settings.state_dir,
        cache_bytes=settings.cache_bytes,
        relay=relay,
        helper_image=settings.docker_helper_image,
        helper_base=settings.docker_helper_base,
        helper_idle_s=settings.docker_helper_idle,
    )
    return DockerSandbox(container, ways, way=settings.docker_way, allowed_dirs=settings.allowed_dirs, allowed=allowed)
