"""Metadata that were read before: a server that many ask for lists reads the same files again and again."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sandpoint.models import BackupMetadata

MOST = 1024
"""How many are kept: some 14 kB each."""

_SETTLED_NS = 100_000_000
"""A file that was written just now may be written again without its times telling so."""

Stamp = tuple[int, int, int, int]


class Remembered:
    """Keeps what was read of files for as long as they are the same. For use by several threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Stamp, BackupMetadata]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: str, read: Callable[[], BackupMetadata]) -> BackupMetadata:
        """Return what is in a file, by `read` if that is not known."""
        try:
            status = os.stat(path)
        except OSError:
            return read()  # which says what is wrong
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        with self._lock:
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                self._known.move_to_end(path)
                return known[1]
        metadata = read()
        if abs(time.time_ns() - status.st_ctime_ns) > _SETTLED_NS:
            self._keep(path, stamp, metadata)
        return metadata

    def _keep(self, path: str, stamp: Stamp, metadata: BackupMetadata) -> None:
        with self._lock:
            self._known[path] = (stamp, metadata)
            while len(self._known) > MOST:
                self._known.popitem(last=False)
