"""The manifest files that were read last, for those who look through a backup folder by folder."""

import threading
from collections import OrderedDict

from sandpoint.engine import transfer
from sandpoint.engine.relay import Relay
from sandpoint.engine.tools import Check
from sandpoint.models import PathGrant, Source

MAX_BYTES = 16 << 20


class RecentManifests:
    """Contents of manifest files, as they lie in a store, up to 16 MiB of them. For use by several threads."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        """Begin with none."""
        self._contents: OrderedDict[str, bytes] = OrderedDict()
        self._left = max_bytes
        self._lock = threading.Lock()

    def content(self, source: Source, relay: Relay | None, check: Check) -> bytes:
        """Return the content of a manifest file, its digest checked when it was read.

        A file of this machine is read each time: the kernel keeps it in memory.

        Raises:
            BackupIntegrityError: It is missing, truncated or altered.
        """
        if isinstance(source.grant, PathGrant):
            return transfer.read_bytes(source, relay, check)
        with self._lock:
            content = self._contents.pop(source.sha256, None)
            if content is not None:
                self._contents[source.sha256] = content
                return content
        content = transfer.read_bytes(source, relay, check)
        self._keep(source.sha256, content)
        return content

    def _keep(self, digest: str, content: bytes) -> None:
        with self._lock:
            if digest in self._contents:
                return
            self._contents[digest] = content
            self._left -= len(content)
            while self._left < 0:
                _, dropped = self._contents.popitem(last=False)
                self._left += len(dropped)
