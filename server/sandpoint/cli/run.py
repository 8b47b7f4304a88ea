"""How a command runs its operation: a service, progress and signals; one way out for results and errors."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sandpoint.cli.failures import Failure, describe, print_json, show_failure
from sandpoint.cli.options import Common

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from sandpoint.models import Report
    from sandpoint.service import BackupService
    from sandpoint.services import Services
    from sandpoint.settings import Settings


class Result(Protocol):
    """A result model of the service."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the fields as JSON says them."""


S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R", bound=Result)


def perform(common: Common, operation: "Callable[[BackupService, Report], Awaitable[T]]") -> T:
    """Run an operation on the store and sandbox that the command was told, to its end or to a signal.

    What was started for the sandbox has ended then, whatever became of the operation.

    Raises:
        StoppedError: SIGINT or SIGTERM ended it; what it had begun is cleaned up.
        SandpointError: As the service says.
    """
    from sandpoint.service import open_service

    return _perform(common, open_service, operation)


def _perform(
    common: Common,
    opener: "Callable[[Settings], AbstractAsyncContextManager[S]]",
    operation: "Callable[[S, Report], Awaitable[T]]",
) -> T:
    import anyio

    from sandpoint.cli.progress import show_progress
    from sandpoint.cli.signals import until_signal
    from sandpoint.cli.startup import loaded
    from sandpoint.settings import read_settings

    settings = read_settings(store=common.store, sandbox=common.sandbox)

    async def work() -> T:
        with show_progress(quiet=common.as_json) as report:
            async with opener(settings) as opened:
                return await operation(opened, report)

    loaded()
    return anyio.run(until_signal, work)


def run(
    common: Common,
    operation: "Callable[[BackupService, Report], Awaitable[R]]",
    show: Callable[[R], None],
    *,
    problem: Callable[[R], Failure | None] = lambda _: None,
) -> int:
    """Run an operation, print its result or its error, and return the exit status.

    A `problem` in a result that was printed all the same decides the exit status.
    """
    return _tell(common, lambda: perform(common, operation), show, problem)


def run_in_several(
    common: Common, operation: "Callable[[Services, Report], Awaitable[R]]", show: Callable[[R], None]
) -> int:
    """Run an operation on the store that the command was told and sandboxes that the operation names; as `run`."""

    def performed() -> R:
        from sandpoint.services import Services

        return _perform(common, Services, operation)

    return _tell(common, performed, show, lambda _: None)


def _tell(
    common: Common,
    perform: Callable[[], R],
    show: Callable[[R], None],
    problem: Callable[[R], Failure | None],
) -> int:
    try:
        result = perform()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place where every error is told
        failure = describe(error)
        show_failure(failure, as_json=common.as_json)
        return failure.status
    if common.as_json:
        print_json(result.model_dump(mode="json"))
    else:
        show(result)
    found = problem(result)
    return found.status if found else 0


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What came of one id of several: a result or a failure."""

    backup_id: str
    result: R | None
    failure: Failure | None

    def as_json(self) -> dict[str, Any]:
        """Return the result's fields, or the id and the error."""
        if self.result is not None:
            return self.result.model_dump(mode="json")
        assert self.failure is not None
        return {"id": self.backup_id, "error": self.failure.as_json()}


def run_each(
    common: Common,
    backup_ids: Sequence[str],
    operation: "Callable[[BackupService, str, Report], Awaitable[R]]",
    show: Callable[[R], None],
    *,
    problem: Callable[[R], Failure | None] = lambda _: None,
) -> int:
    """Run an operation on each id, going on where one fails, and return the first failure's exit status.

    One id is told as by `run`. Of several, the program gets `results`, one for each id that was tried, and
    `error` beside them where the whole was ended by a signal.
    """
    if len(backup_ids) == 1:
        return run(common, lambda service, report: operation(service, backup_ids[0], report), show, problem=problem)

    outcomes: list[Outcome[R]] = []

    async def all_of_them(service: "BackupService", report: "Report") -> None:
        for backup_id in backup_ids:
            try:
                result = await operation(service, backup_id, report)
            except Exception as error:  # noqa: BLE001 - told with its id; the others are still to be done
                outcomes.append(Outcome(backup_id, None, describe(error)))
            else:
                outcomes.append(Outcome(backup_id, result, problem(result)))

    ended: Failure | None = None
    try:
        perform(common, all_of_them)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - as in run
        ended = describe(error)
    if common.as_json:
        _print_outcomes(outcomes, ended)
    else:
        _show_outcomes(outcomes, ended, show)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    return ended.status if ended else failures[0].status if failures else 0


def _print_outcomes(outcomes: Sequence[Outcome[R]], ended: Failure | None) -> None:
    # Nothing was tried when the settings are wrong: then there is only the error.
    answer: dict[str, Any] = {"results": [outcome.as_json() for outcome in outcomes]} if outcomes or not ended else {}
    print_json(answer | ({"error": ended.as_json()} if ended else {}))


def _show_outcomes(outcomes: Sequence[Outcome[R]], ended: Failure | None, show: Callable[[R], None]) -> None:
    for outcome in outcomes:
        if outcome.result is not None:
            show(outcome.result)
        elif outcome.failure is not None:
            message = f"{outcome.backup_id}: {outcome.failure.message}"
            show_failure(Failure(outcome.failure.code, message, outcome.failure.status), as_json=False)
    if ended:
        show_failure(ended, as_json=False)
