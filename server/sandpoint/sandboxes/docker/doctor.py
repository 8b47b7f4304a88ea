"""What `doctor` tells of an engine, of a container, and of the ways into it."""

from collections.abc import Sequence
from typing import Literal

from sandpoint.errors import SandboxUnavailableError, SandpointError
from sandpoint.models import Capability
from sandpoint.sandboxes.docker.host import DockerHost, Target
from sandpoint.sandboxes.docker.ways import Way, WayClosedError, WayName

ALWAYS_NEEDED = "every backup and restore"
_REACHING = "reaching the container"


def describe_engine(host: DockerHost) -> Capability:
    """Return whether the engine answers, where, and which it is."""
    try:
        version, place = host.version()
    except SandboxUnavailableError as error:
        return Capability(name="Docker engine", available=False, needed_for=ALWAYS_NEEDED, detail=str(error))
    return Capability(name="Docker engine", available=True, needed_for=ALWAYS_NEEDED, detail=f"{version} at {place}")


def describe_target(target: Target) -> Capability:
    """Return what is known of a container that runs."""
    state = "paused" if target.is_paused else "running"
    return Capability(name="container", available=True, needed_for=ALWAYS_NEEDED, detail=f"{target.name} is {state}")


def describe_missing(error: SandpointError) -> Capability:
    """Return that a container cannot be used, and why."""
    return Capability(name="container", available=False, needed_for=ALWAYS_NEEDED, detail=str(error))


def describe_ways(
    ways: Sequence[Way], wanted: Literal["auto"] | WayName, target: Target
) -> tuple[list[Capability], WayName | None]:
    """Return of each way whether it is open and why not, and the name of the one that would be used."""
    used: WayName | None = None
    told: list[tuple[WayName, bool, str]] = []
    for way in ways:
        if wanted not in {"auto", way.name}:
            told.append((way.name, False, f"not asked for: SANDPOINT_DOCKER_WAY={wanted}"))
            continue
        try:
            detail = way.check(target)
        except WayClosedError as error:
            told.append((way.name, False, str(error)))
        else:
            told.append((way.name, True, detail if used else f"would be used: {detail}"))
            used = used or way.name
    needed_for = _REACHING if used else ALWAYS_NEEDED
    return [
        Capability(name=f"{name} way", available=is_open, needed_for=needed_for, detail=detail)
        for name, is_open, detail in told
    ], used
