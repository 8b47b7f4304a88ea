"""The helper way: a container beside the target, from an image with the engine in it."""

from sandpoint.engine import wire
from sandpoint.errors import SandboxUnavailableError
from sandpoint.sandboxes.connection import Connection, UnfitError
from sandpoint.sandboxes.docker.exec_stream import ExecStream
from sandpoint.sandboxes.docker.helper_containers import HelperContainers
from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.image import HelperImage, build_name
from sandpoint.sandboxes.docker.ways import WayClosedError, WayName, WaySettings
from sandpoint.sandboxes.remote_engine import RemoteEngine

_ENGINE = ["python3", "-m", "sandpoint.engine.process"]
_FIRST_PROCESS = 1
"""Of the target, as the helper numbers it: it is in the target's own process namespace."""
_TRIES = 3


class HelperWay:
    """Implements `Way` on any engine that runs a container with CAP_SYS_ADMIN in another's process namespace."""

    name: WayName = "helper"

    def __init__(self, host: DockerHost, settings: WaySettings) -> None:
        """Take an engine; nothing is asked yet."""
        self._host = host
        self._settings = settings
        self._image: HelperImage | None = None

    def check(self, target: Target) -> str:
        """See that the engine is one that may run a helper, and that there is an image; see `Way`.

        Whether the engine really takes the helper shows when it is started.
        """
        self._containers().check(target)
        return f"by a container beside it, {self._found_image().how()}"

    def open(self, target: Target) -> RemoteEngine:
        """Start the helper unless it runs, and the engine in it; see `Way`."""
        self.check(target)
        self._found_image().ensure()
        for attempt in range(1, _TRIES + 1):
            try:
                return self._connect(target)
            except SandboxUnavailableError as error:
                # It may have ended between two looks, for want of anything to do.
                if not self._runs(target):
                    raise
                if attempt == _TRIES:
                    image = self._found_image()
                    raise WayClosedError(
                        f"no engine runs in image {image.name}: {error}; build it anew with: {image.command}"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _connect(self, target: Target) -> RemoteEngine:
        helper, state = self._containers().ensure(target)
        connection = Connection(ExecStream(self._host, helper, _ENGINE), f"the helper beside {target.name}")
        try:
            hello = connection.greet(
                wire.Configure(
                    place=wire.ContainerPlace(pid=_FIRST_PROCESS, stamped=target.stamped),
                    state=f"{state}/sandboxes/{target.id}",
                    shared=state,
                    sandbox_id=target.sandbox_id,
                    cache_bytes=self._settings.cache_bytes,
                )
            )
            self._check_version(hello)
        except UnfitError as error:
            connection.close()
            raise WayClosedError(str(error)) from error
        except BaseException:
            connection.close()
            raise
        return RemoteEngine(connection, self._settings.relay, self._settings.state_dir)

    def _check_version(self, hello: wire.Hello) -> None:
        if (hello.protocol, hello.build) != (wire.PROTOCOL, build_name()):
            image = self._found_image()
            raise WayClosedError(
                f"image {image.name} has the engine of another version of Sandpoint; build it anew with: "
                f"{image.command}"
            )

    def _runs(self, target: Target) -> bool:
        return self._host.find(target.id).pid == target.pid

    def _containers(self) -> HelperContainers:
        return HelperContainers(self._host, self._found_image().name, self._settings.helper_idle_s)

    def _found_image(self) -> HelperImage:
        if self._image is None:
            self._image = HelperImage(self._host, self._settings.helper_image, self._settings.helper_base)
        return self._image
