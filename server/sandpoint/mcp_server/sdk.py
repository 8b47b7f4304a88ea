"""The MCP SDK, loaded before anything else of this package, without what a session never uses.

It defines some four hundred models. With the validators of all built at once its import takes a tenth longer; those of
deferred ones are built when they are first used, which pydantic guards by a lock. Its servers set up logging by rich,
whose import takes as long as all our tools; how we log is said in `logs`.
"""

from pydantic import BaseModel

BaseModel.model_config["defer_build"] = True
try:
    import mcp.server.mcpserver.server
finally:
    del BaseModel.model_config["defer_build"]


def _leave_logging(level: object) -> None:
    """Stand in the place of the SDK's `configure_logging`."""


vars(mcp.server.mcpserver.server)["configure_logging"] = _leave_logging

__all__ = ["mcp"]
