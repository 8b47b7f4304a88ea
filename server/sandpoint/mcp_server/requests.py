"""The requests that are being answered: by what name each is in the log, how it ended, and how all are ended."""

import logging
import re
import time
from uuid import uuid4

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandpoint.mcp_server.guards import refusal
from sandpoint.mcp_server.logs import Call, current_call

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SESSION_SHOWN = 8


class Requests:
    """Names each request, logs how it ended, and can end those that are open."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._open: dict[anyio.CancelScope, bool] = {}
        self._answered = anyio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        session = headers.get("mcp-session-id", "")[:_SESSION_SHOWN]
        token = current_call.set(Call(request_id=request_id, session=session or None))
        began = time.monotonic()
        status = 0
        is_done = False

        async def sending(message: Message) -> None:
            nonlocal status, is_done
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            elif message["type"] == "http.response.body":
                is_done = not message.get("more_body", False)
            await send(message)

        try:
            with anyio.CancelScope() as open_request:
                self._open[open_request] = _is_stream(scope["method"], headers)
                await self._app(scope, receive, sending)
            if open_request.cancelled_caught and not is_done:
                await _finish(status, scope, receive, sending)
        finally:
            del self._open[open_request]
            self._answered.set()
            self._answered = anyio.Event()
            details = {
                "http_method": scope["method"],
                "path": scope["path"],
                "status": status,
                "duration_ms": round((time.monotonic() - began) * 1000, 1),
            }
            # Calls are logged by themselves.
            logger.log(logging.INFO if status >= 400 else logging.DEBUG, "request", extra={"details": details})
            current_call.reset(token)

    async def wait_answered(self) -> None:
        """Wait until nothing is open but streams that only a client or a server ends."""
        while not all(self._open.values()):
            await self._answered.wait()

    def end(self) -> None:
        """End what is open: streams are closed, requests answered with 503."""
        for each in [*self._open]:
            each.cancel()


def _is_stream(method: str, headers: Headers) -> bool:
    return method == "GET" or headers.get("mcp-method") == "subscriptions/listen"


async def _finish(status: int, scope: Scope, receive: Receive, send: Send) -> None:
    if status:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        await refusal(503, "stopping", "the server stops; try again", retry_after="5")(scope, receive, send)
