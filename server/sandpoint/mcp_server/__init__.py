"""The MCP server: seven tools over stdio, for agents that want a way back."""

from sandpoint.mcp_server.server import build_server
from sandpoint.mcp_server.stdio import serve

__all__ = ["build_server", "serve"]
