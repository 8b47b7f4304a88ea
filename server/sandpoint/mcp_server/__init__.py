"""The MCP server: tools, resources and prompts on stdio or over HTTP, for agents that want a way back."""

from sandpoint.mcp_server import sdk as sdk
from sandpoint.mcp_server.server import build_server
from sandpoint.mcp_server.stdio import serve

__all__ = ["build_server", "serve"]
