"""Messages of the protocol as they go over HTTP, written by hand."""

from typing import Any

REVISION = "2026-07-28"
CLIENT = {"name": "test", "version": "1"}
JSON = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
MODERN = {"MCP-Protocol-Version": REVISION}
META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": REVISION,
    "io.modelcontextprotocol/clientInfo": CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""What each request of this revision says of its client."""

INITIALIZE: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": CLIENT},
}


def call_headers(tool: str) -> dict[str, str]:
    """Return the headers of a call."""
    return JSON | MODERN | {"Mcp-Method": "tools/call", "Mcp-Name": tool}


def call_message(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call."""
    params = {"name": tool, "arguments": arguments, "_meta": META}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
