"""The layers of one backup, bottom first: each file is read from the layer that has it."""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sandpoint.engine import squashfs
from sandpoint.engine.apply import Holders
from sandpoint.engine.contents import Roots
from sandpoint.engine.copies import make_node
from sandpoint.engine.layers import opened_layer
from sandpoint.engine.manifest import Entry, Manifest
from sandpoint.engine.plan import is_at_or_below
from sandpoint.engine.tools import Check


class Chain:
    """The checked layers of a backup, and its manifest, which knows what is where."""

    def __init__(self, files: Callable[[], Sequence[str]], manifest: Manifest, work: str, check: Check) -> None:
        """Name them.

        Args:
            files: Returns the layers' files, bottom first, once they are checked.
            manifest: Of the whole backup.
            work: A folder of the operation's own.
            check: May raise to stop.
        """
        self._files = files
        self._manifest = manifest
        self._work = work
        self._check = check

    def _layer_of(self, path: bytes) -> int:
        return self._manifest.layers.get(path, 0)

    def _by_layer(self, entries: Sequence[Entry]) -> dict[int, list[Entry]]:
        found: dict[int, list[Entry]] = {}
        for entry in entries:
            found.setdefault(self._layer_of(entry.path), []).append(entry)
        return found

    @contextmanager
    def opened(self, entries: Sequence[Entry]) -> Iterator[Roots]:
        """Yield where to read some regular files.

        Raises:
            BackupIntegrityError: A layer is missing or altered.
            ToolFailedError, ToolMissingError: A layer can be read in no way.
        """
        files = self._files()
        with ExitStack() as stack:
            layers = {
                number: stack.enter_context(
                    opened_layer(files[number], [entry.path for entry in here], self._work, self._check)
                )
                for number, here in self._by_layer(entries).items()
            }
            yield lambda path: layers[self._layer_of(path)]

    def extract(self, into: str, entries: Sequence[Entry], *, units: Sequence[bytes]) -> None:
        """Extract entries, without their attributes.

        Args:
            into: A directory that does not exist yet.
            entries: What to extract.
            units: Paths that bring all of them out of a single layer, directories standing for what is below.

        Raises:
            BackupIntegrityError: A layer is missing or altered.
            ToolFailedError, ToolMissingError: unsquashfs is missing, or failed.
        """
        files = self._files()
        covered = frozenset(units)
        if len(files) == 1 and all(is_at_or_below(entry.path, covered) for entry in entries if entry.is_dir):
            squashfs.extract(files[0], into, units, scratch=self._work, check=self._check)
            return
        os.mkdir(into, 0o700)
        for entry in entries:
            if entry.is_dir:
                os.makedirs(os.path.join(os.fsencode(into), entry.path), mode=0o700, exist_ok=True)
        below = [entry for entry in entries if not entry.is_dir]
        for number, here in sorted(self._by_layer(below).items()):
            paths = [entry.path for entry in here if not stat.S_ISSOCK(entry.mode)]
            if paths:
                _open_up(into)
                squashfs.extract(files[number], into, paths, scratch=self._work, check=self._check)
        _open_up(into)
        self._make_sockets(into, [entry for entry in below if stat.S_ISSOCK(entry.mode)])

    @staticmethod
    def _make_sockets(into: str, sockets: Sequence[Entry]) -> None:
        """Make sockets anew: the layer of a delta cannot hold them."""
        if not sockets:
            return
        fd = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        holders = Holders(fd)
        try:
            for entry in sockets:
                os.makedirs(os.path.join(os.fsencode(into), os.path.dirname(entry.path)), mode=0o700, exist_ok=True)
                make_node(entry, *holders.of(entry.path))
        finally:
            holders.close()
            os.close(fd)


def _open_up(folder: str) -> None:
    """Let an ordinary user into directories that were extracted, whatever their modes: attributes are set later."""
    if os.geteuid() == 0:
        return
    for place, folders, _ in os.walk(os.fsencode(folder)):
        for name in folders:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
