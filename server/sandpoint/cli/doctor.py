"""`sandpoint doctor`."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sandpoint.cli.failures import Failure, describe
from sandpoint.cli.options import Common, Json, Sandbox, Store
from sandpoint.cli.run import run
from sandpoint.cli.terminal import paint, printable, say
from sandpoint.errors import SandboxUnavailableError, SandpointError

if TYPE_CHECKING:
    from sandpoint.models import Capabilities, Capability, Report
    from sandpoint.service import BackupService
    from sandpoint.settings import Settings


@dataclass(frozen=True)
class Health:
    """What the sandbox can do, and whether the store answers."""

    capabilities: "Capabilities"
    store: str
    endpoint: str | None
    store_failure: Failure | None

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the sandbox's capabilities, and the store beside them."""
        failure = self.store_failure.as_json() if self.store_failure else None
        store = {"url": self.store, "endpoint": self.endpoint, "available": failure is None, "error": failure}
        return self.capabilities.model_dump(mode=mode) | {"store": store}


def doctor(
    store: Store = None,
    sandbox: Sandbox = None,
    as_json: Json = False,
) -> int:
    """Tell what this machine can do, and what is missing.

    For what is missing, the command that installs it is printed.
    """
    common = Common(store, sandbox, as_json)
    return run(
        common,
        lambda service, report: examine(service, report, common),
        lambda health: show_health(health, common),
        problem=find_problem,
    )


async def examine(service: "BackupService", report: "Report", common: Common) -> Health:
    """Ask the sandbox and the store; a store that cannot be reached is part of the answer."""
    from sandpoint.settings import read_settings

    capabilities = await service.capabilities()
    failure = None
    try:
        await service.check_store()
    except SandpointError as error:
        failure = describe(error)
    settings = read_settings(store=common.store)
    return Health(capabilities, settings.store, _endpoint(settings), failure)


def _endpoint(settings: "Settings") -> str | None:
    """Return the server of a bucket, where the settings name one, without what it may hold of credentials."""
    if not settings.store.startswith("s3:"):
        return None
    if settings.r2 is not None:
        return f"https://{settings.r2.account_id}.r2.cloudflarestorage.com"
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # as AWS's own tools look for it
    url = settings.s3_endpoint_url or next(filter(None, map(os.environ.get, names)), None)
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    if not parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def find_problem(health: Health) -> Failure | None:
    """Return what keeps backups from being made or restored at all, None where nothing does."""
    missing = [item.name for item in health.capabilities.items if is_needed(item) and not item.available]
    if missing:
        status = SandboxUnavailableError.exit_status
        return Failure(SandboxUnavailableError.code, f"missing: {', '.join(missing)}", status)
    return health.store_failure


def is_needed(item: "Capability") -> bool:
    """Whether nothing works without it."""
    return item.needed_for.startswith("every ")


def show_health(health: Health, common: Common) -> None:
    """Print each thing with what it is for and how to get it, and what it all comes to."""
    capabilities = health.capabilities
    say(f"Sandbox {printable(capabilities.sandbox)}")
    names = [printable(item.name) for item in capabilities.items]
    width = max(map(len, names), default=0)
    for name, item in zip(names, capabilities.items, strict=True):
        detail = f" ({printable(item.detail)})" if item.detail else ""
        say(f"  {_mark(item)}  {name.ljust(width)}  for {printable(item.needed_for)}{detail}")
        if not item.available and item.remedy:
            say(f"           {' ' * width}  to have it: {printable(item.remedy)}")
            for arguments in item.commands:
                say(f"           {' ' * width}    {common.command(*arguments)}")
    say(f"Store {printable(health.store)}" + (f" at {printable(health.endpoint)}" if health.endpoint else ""))
    if health.store_failure:
        message = printable(health.store_failure.message, lines=True)
        say(f"  {paint('failed ', 'red')}  {message} [{health.store_failure.code}]")
    else:
        say(f"  {paint('ok     ', 'green')}  answers")
    problem = find_problem(health)
    say("Backups cannot be made or restored here yet." if problem else "Ready to make and restore backups.")


def _mark(item: "Capability") -> str:
    if item.available:
        return paint("ok     ", "green", sys.stdout)
    return paint("missing", "red" if is_needed(item) else "yellow", sys.stdout)
