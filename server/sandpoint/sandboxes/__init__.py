"""Where an engine runs: next to the tree that it captures and restores."""

from sandpoint.sandboxes.base import Sandbox

__all__ = ["Sandbox"]
