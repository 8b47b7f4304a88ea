"""What a failure is called wherever a client reads it: its code, and then the reason with the remedy."""

from mcp_types import CallToolResult, TextContent

from sandpoint.printable import cut

MAX_ERROR = 4_000
"""How many characters of an error a model reads: arguments and names in it may be of any length."""

CODE_META = "sandpoint/code"
"""The key in an error result's `_meta` under which programs find the code."""


def coded(code: str, message: object) -> str:
    """Return the text of a failure, as the protocol can carry it: names of files in it may hold anything."""
    return cut(f"{code}: {message}", MAX_ERROR, lines=True)


def error_result(code: str, message: str) -> CallToolResult:
    """Return a failed call: the code in the text, which is all that a model reads, and in `_meta`."""
    text = TextContent(type="text", text=coded(code, message))
    return CallToolResult(content=[text], is_error=True, _meta={CODE_META: code})
