"""The life of helper containers: one beside each target and for each image, started when there is none.

A helper ends by itself when it was idle for some time, and with its target; Docker then removes it.
"""

import time
from typing import TYPE_CHECKING, Any

from sandpoint.errors import SandboxUnavailableError
from sandpoint.sandboxes.docker.host import ROLE_LABEL, TARGET_LABEL, VOLUME, DockerHost, Target, explained
from sandpoint.sandboxes.docker.ways import WayClosedError

if TYPE_CHECKING:
    from docker.models.containers import Container

CAPABILITIES = (
    "SYS_ADMIN",  # mounts, and trusted.* attributes of overlays
    "SYS_PTRACE",  # /proc/1/root
    "SYS_CHROOT",  # setns into a mount namespace
    "DAC_OVERRIDE",
    "CHOWN",
    "FOWNER",
    "FSETID",
    "MKNOD",
    "SETFCAP",
)
"""All that a helper has: to enter the target, and to read and restore files of any owner."""

LOOP_DEVICES = "b 7:* rwm"
_START_S = 30.0
_POLL_S = 0.05
_CONFLICT = 409
_OTHER_KERNELS = ("runsc", "kata")
_NO_ROOT = {"userns": "its containers have user namespaces of their own", "rootless": "it runs without root"}


class HelperContainers:
    """The helpers of an engine, of one image."""

    def __init__(self, host: DockerHost, image: str, idle_s: int) -> None:
        """Nothing is asked yet.

        Args:
            host: The engine.
            image: Of the helpers.
            idle_s: How long one waits for another operation.
        """
        self._host = host
        self._image = image
        self._idle_s = idle_s

    def check(self, target: Target) -> None:
        """See whether the engine is of a kind that runs helpers.

        Raises:
            WayClosedError: It is not.
        """
        with explained("the Docker engine"):
            info = self._host.client.info()
            config = self._host.client.api.inspect_container(target.id)["HostConfig"]
        if info.get("OSType") != "linux":
            raise WayClosedError(f"the engine runs containers of {info.get('OSType')}, not of Linux")
        for option in info.get("SecurityOptions") or ():
            for word, why in _NO_ROOT.items():
                if f"name={word}" in option:
                    raise WayClosedError(f"the engine lets no container mount anything: {why}")
        if any(kernel in str(config.get("Runtime", "")) for kernel in _OTHER_KERNELS):
            raise WayClosedError(f"the container has a kernel of its own ({config['Runtime']})")
        if config.get("PidMode"):
            raise WayClosedError(f"the container shares process numbers with others ({config['PidMode']})")

    def ensure(self, target: Target) -> tuple[str, str]:
        """Return the id of the target's helper, started if there is none, and where the state volume is in it.

        Raises:
            WayClosedError: The engine refuses it; nothing is left.
            SandboxUnavailableError: The target is gone, or the engine does not answer.
        """
        state = self._host.state_volume()
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            found = self._find(target) or self._start(target, state)
            if found is not None:
                return found, state
            time.sleep(_POLL_S)  # another server starts it, or the last one is being removed
        raise SandboxUnavailableError(f"no helper could be started beside {target.name} in {_START_S:.0f} s; try again")

    def _name(self, target: Target) -> str:
        return f"sandpoint-helper-{target.id[:12]}-{self._image.rpartition(':')[2][:12]}"

    def _find(self, target: Target) -> str | None:
        from docker.errors import NotFound

        with explained(f"the helper beside {target.name}"):
            try:
                found = self._host.client.api.inspect_container(self._name(target))
            except NotFound:
                return None
        labels = found["Config"].get("Labels") or {}
        if labels.get(TARGET_LABEL) != target.id:
            raise SandboxUnavailableError(
                f"container {self._name(target)} is no helper of Sandpoint's; docker rm -f {found['Id'][:12]}"
            )
        status = found["State"]["Status"]
        if status == "created":  # another server starts it at this moment, or died before it could
            self._run(target, str(found["Id"]))
        elif not found["State"]["Running"]:
            self._remove(str(found["Id"]))
            return None
        return str(found["Id"])

    def _start(self, target: Target, state: str) -> str | None:
        from docker.errors import APIError

        with explained(f"the helper beside {target.name}"):
            try:
                made: Container = self._host.client.containers.create(self._image, **self._options(target, state))
            except APIError as error:
                if error.status_code == _CONFLICT:
                    return None
                raise self._refused(target, error) from error
        self._run(target, str(made.id))
        return str(made.id)

    def _run(self, target: Target, helper: str) -> None:
        from docker.errors import APIError, NotFound

        with explained(f"the helper beside {target.name}"):
            try:
                self._host.client.api.start(helper)
            except NotFound as error:
                raise SandboxUnavailableError(f"the helper beside {target.name} was removed; try again") from error
            except BaseException as error:
                self._remove(helper)
                if isinstance(error, APIError):
                    raise self._refused(target, error) from error
                raise

    def _refused(self, target: Target, error: Any) -> Exception:
        self._host.find(target.id)  # it says so itself where the target is gone
        return WayClosedError(f"the engine refuses a helper: {error.explanation}")

    def _options(self, target: Target, state: str) -> dict[str, Any]:
        return {
            "name": self._name(target),
            "command": ["python3", "-m", "sandpoint.engine.process", "--wait", str(self._idle_s)],
            "labels": {ROLE_LABEL: "helper", TARGET_LABEL: target.id},
            "auto_remove": True,
            "pid_mode": f"container:{target.id}",
            "cap_drop": ["ALL"],
            "cap_add": list(CAPABILITIES),
            # AppArmor's and SELinux's own rules for containers allow no mounts, and no other container's files.
            "security_opt": ["apparmor=unconfined", "label=disable"],
            "devices": ["/dev/loop-control"],
            "device_cgroup_rules": [LOOP_DEVICES],
            # By the path that it has on the engine's host: what is noted there means the same to the direct way.
            "volumes": {VOLUME: {"bind": state, "mode": "rw"}},
            "read_only": True,
            "tmpfs": {"/tmp": "", "/run": ""},  # noqa: S108 - the helper's own
            "stop_signal": "SIGKILL",
        }

    def _remove(self, container: str) -> None:
        from docker.errors import APIError

        try:
            self._host.client.api.remove_container(container, force=True)
        except APIError as error:
            if error.status_code not in {404, _CONFLICT}:  # gone, or being removed
                raise
