"""Asking the user before a tool changes or deletes what is there.

The SDK's `Resolve` parameters would ask too. This asks by hand, over the same two ways of the protocol, as an answer
is to count for the whole plan and not only for what the question shows of it, the question is to be asked anew in
either revision where the plan has changed, and clients that accept a form without fields send no content.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Literal, Protocol

from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import ElicitRequest, ElicitRequestFormParams, ElicitResult, InputRequiredResult
from mcp_types.version import is_version_at_least
from pydantic import ValidationError

from sandpoint.errors import PlanChangedError
from sandpoint.models import Changes, Mode, RestoreResult
from sandpoint.printable import cut

Confirm = Literal["auto", "never"]
"""Whether the user is asked: wherever the client can, or never."""

ANSWER_TTL = 24 * 3600.0
"""Seconds for which an answer may come with the same call again; a question within a call waits as long as the call."""

MAX_PLANS = 3
"""How many plans one call asks about, where each is overtaken by what else writes to the directory."""

_ASKED_IN_RESULTS = "2026-07-28"
"""The revision from which on a question is a call's result, and its answer comes with the same call again."""

MAX_WHY = 200
"""Characters of a client's error that a model reads."""

_KEY = "confirm"
_NO_FIELDS: dict[str, Any] = {"type": "object", "properties": {}}

_DECLINED = (
    "the user was asked whether to {what}, and said no. Nothing was touched. Do not call this again for the same; ask "
    "the user what to do instead"
)
_CANCELLED = (
    "the question to the user whether to {what} was dismissed without an answer. Nothing was touched. Do not call this "
    "again by yourself; tell the user, and wait for what they say. If their client dismisses such questions without "
    "showing them, they can start this server with SANDPOINT_CONFIRM=never"
)
_UNASKED = (
    "the user was to be asked whether to {what}, and their client gave no answer that counts: {why}. Nothing was "
    "touched. Do not call this again by yourself; tell the user. If their client cannot ask, they can start this "
    "server with SANDPOINT_CONFIRM=never"
)


class NotConfirmedError(ToolError):
    """The user did not say yes; nothing was touched."""

    code = "NOT_CONFIRMED"


class Confirmer:
    """Asks users, where that is wanted and their clients can."""

    def __init__(self, confirm: Confirm) -> None:
        self._confirm = confirm

    def can_ask(self, ctx: Context[Any, Any]) -> bool:
        """Whether the user is asked in this call."""
        if self._confirm == "never" or ctx.protocol_version is None or ctx.client_capabilities is None:
            return False
        elicitation = ctx.client_capabilities.elicitation
        if elicitation is None or (elicitation.form is None and elicitation.url is not None):
            return False
        return _asks_in_results(ctx) or ctx.session.can_send_request

    async def ask(
        self, ctx: Context[Any, Any], question: str, *, what: str, plan: str, waiting: Callable[[], Awaitable[None]]
    ) -> InputRequiredResult | None:
        """Ask the user, and return only if the answer is yes; hold nothing meanwhile that others wait for.

        Args:
            ctx: Of the call.
            question: What the user reads.
            what: The same in a few words for the model, after "whether to".
            plan: What the answer is to count for: it does not for another one.
            waiting: Awaited before a wait for the answer in this call.

        Returns:
            None for a yes; otherwise the question, to be the result of the call, which then comes again.

        Raises:
            NotConfirmedError: The user said no, dismissed the question, or was not shown it.
        """
        if _asks_in_results(ctx):
            about = hashlib.sha256(f"{plan}\n{question}".encode("utf-8", "surrogateescape")).hexdigest()
            answer = (ctx.input_responses or {}).get(_KEY)
            if ctx.request_state != about or not isinstance(answer, ElicitResult):
                form = ElicitRequestFormParams(message=question, requested_schema=_NO_FIELDS)
                return InputRequiredResult(input_requests={_KEY: ElicitRequest(params=form)}, request_state=about)
        else:
            await waiting()
            try:
                answer = await ctx.session.elicit_form(question, _NO_FIELDS, related_request_id=ctx.request_id)
            except MCPError as error:
                raise NotConfirmedError(_UNASKED.format(what=what, why=cut(str(error), MAX_WHY))) from error
            except ValidationError as error:
                raise NotConfirmedError(_UNASKED.format(what=what, why="its answer is none that there is")) from error
        if answer.action == "decline":
            raise NotConfirmedError(_DECLINED.format(what=what))
        if answer.action == "cancel":
            raise NotConfirmedError(_CANCELLED.format(what=what))
        return None


class _Restore(Protocol):
    async def __call__(self, mode: Mode, *, dry_run: bool, expected: str | None = None) -> RestoreResult: ...


async def restore_as_confirmed(
    mode: Mode,
    restore: _Restore,
    ask: Callable[[RestoreResult, Changes], Awaitable[InputRequiredResult | None]],
) -> RestoreResult | InputRequiredResult:
    """Plan a restore, ask about the plan unless it leaves all as it is, and do just that.

    While the user thinks, nothing is held: the directory may change. Whether the plan is still the same is looked at
    when the restore has its turn, and if it is not, the user is asked about the new one.

    Raises:
        PlanChangedError: It was another one again and again.
        NotConfirmedError: The user did not say yes.
    """
    for attempt in range(1, MAX_PLANS + 1):
        planned = await restore(mode, dry_run=True)
        changes = planned.changes or Changes()
        is_touched = changes or planned.mode == "overlay" or planned.unmounted
        question = await ask(planned, changes) if is_touched else None
        if question is not None:
            return question
        try:
            return await restore(planned.mode, dry_run=False, expected=changes.fingerprint())
        except PlanChangedError:
            if attempt == MAX_PLANS:
                raise
    raise AssertionError("the last attempt returns or raises")


def _asks_in_results(ctx: Context[Any, Any]) -> bool:
    version = ctx.protocol_version
    return version is not None and is_version_at_least(version, _ASKED_IN_RESULTS)
