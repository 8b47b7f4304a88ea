"""The sandbox that is this machine."""

from collections.abc import Sequence
from typing import Literal

from sandpoint.engine.operations import LocalEngine
from sandpoint.engine.relay import Relay
from sandpoint.engine.state import DEFAULT_CACHE_BYTES, State
from sandpoint.sandboxes.engine_sandbox import EngineSandbox


class LocalSandbox(EngineSandbox):
    """Directories of this machine. Implements `Sandbox`."""

    def __init__(
        self,
        state_dir: str,
        *,
        allowed_dirs: Sequence[str] | None = None,
        kept_out: Sequence[str] = (),
        overlay: Literal["kernel", "fuse"] | None = None,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        relay: Relay | None = None,
    ) -> None:
        """Describe the sandbox; nothing is made or read yet.

        Args:
            state_dir: The state directory's path.
            allowed_dirs: Directories that may be used, with all below them; None allows any but the system's.
            kept_out: Directories, besides the state directory, that may not lie in one used, nor it in them.
            overlay: Mount overlays this way only; by default the kernel's where it can, else FUSE.
            cache_bytes: What the cache of the store's files may hold between operations.
            relay: What carries files to and from a store that cannot be reached from here.
        """
        engine = LocalEngine(State(state_dir, cache_bytes=cache_bytes, relay=relay), overlay)
        super().__init__(lambda: engine, allowed_dirs=allowed_dirs, kept_out=(state_dir, *kept_out))
