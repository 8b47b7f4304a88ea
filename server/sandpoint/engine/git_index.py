"""Git's index: whether two say the same of a work tree, but for the stamps of its files.

Git notes the stamps of files in its index, and writes it anew wherever it looks at files that have others by now: after
each restore in a repository, a mere `git status` does.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from itertools import zip_longest

from sandpoint.engine.contents import open_regular
from sandpoint.engine.differences import Side
from sandpoint.engine.manifest import Entry
from sandpoint.engine.plan import Comparison, Plan

_MAX_BYTES = 1 << 25
"""A larger index is not read: it counts as another one."""

_HEADER = struct.Struct(">4sII")
_FIXED = struct.Struct(">24s4s12s20sH")
_CACHES = frozenset({b"TREE", b"UNTR", b"FSMN", b"EOIE", b"IEOT"})
_CHECKSUM = 20
_LENGTH, _EXTENDED = 0xFFF, 0x4000


def is_only_refreshed(plan: Plan, source: Side, target: Side, comparison: Comparison) -> bool:
    """Whether a plan changes nothing but indexes of git, and nothing but stamps in these."""
    if plan.added or plan.removed or not (plan.replaced or plan.touched):
        return False
    pairs = [(source.manifest.entries[entry.path], entry) for entry in (*plan.replaced, *plan.touched)]
    if not all(_is_index(old) and _is_index(new) and comparison.same_but_mtime(old, new) for old, new in pairs):
        return False
    rewritten = plan.replaced
    if not rewritten:
        return True
    with source.opened(rewritten) as before, target.opened(rewritten) as after:
        return all(_says_the_same(before(entry.path), after(entry.path), entry.path) for entry in rewritten)


def says_the_same(first: bytes, second: bytes) -> bool:
    """Whether two indexes have the same paths, modes, objects and flags. Not, if one cannot be understood."""
    try:
        return all(one == other for one, other in zip_longest(_parts(first), _parts(second)))
    except (ValueError, IndexError, struct.error):
        return False


def _is_index(entry: Entry) -> bool:
    *above, name = entry.path.split(b"/")
    return entry.is_file and not entry.hardlink and entry.size <= _MAX_BYTES and name == b"index" and b".git" in above


def _says_the_same(first: int, second: int, path: bytes) -> bool:
    try:
        return says_the_same(_read(first, path), _read(second, path))
    except OSError:
        return False


def _read(root: int, path: bytes) -> bytes:
    with os.fdopen(open_regular(root, path), "rb") as file:
        return file.read(_MAX_BYTES)


def _parts(content: bytes) -> Iterator[tuple[bytes, ...]]:
    """Yield what an index of version 2, 3 or 4, with SHA-1, says besides stamps.

    Raises:
        ValueError, IndexError, struct.error: It is none.
    """
    signature, version, count = _HEADER.unpack_from(content)
    if signature != b"DIRC" or version not in {2, 3, 4} or not _is_whole(content):
        raise ValueError("no index of git that is known here")
    yield (content[: _HEADER.size],)
    at, length = _HEADER.size, 0
    for _ in range(count):
        _times, mode, _owner, digest, flags = _FIXED.unpack_from(content, at)
        begin = at + _FIXED.size + (2 if flags & _EXTENDED else 0)
        kept, name = _shared(content, begin, length) if version == 4 else (0, begin)
        end = content.index(b"\0", name)
        length = kept + end - name
        if not length or min(length, _LENGTH) != flags & _LENGTH:
            raise ValueError("a name is not as long as the index says")
        yield mode, digest, content[at + _FIXED.size - 2 : end]
        at = end + 1 if version == 4 else at + (end - at + 8) // 8 * 8
    yield from _extensions(content, at)


def _is_whole(content: bytes) -> bool:
    checksum = content[-_CHECKSUM:]  # zeros: git was told to write none (index.skipHash)
    return not any(checksum) or checksum == hashlib.sha1(content[:-_CHECKSUM], usedforsecurity=False).digest()


def _shared(content: bytes, at: int, length: int) -> tuple[int, int]:
    """Return how much a name of version 4 has of the one before, of such a length, and where the rest of it begins."""
    gone = content[at] & 0x7F
    while content[at] & 0x80:
        at += 1
        gone = (gone + 1 << 7) | (content[at] & 0x7F)
        if gone > len(content):
            break
    if gone > length:
        raise ValueError("a name has more of the one before than there is")
    return length - gone, at + 1


def _extensions(content: bytes, at: int) -> Iterator[tuple[bytes]]:
    """Yield what else an index says, but for what follows from its entries and the files."""
    end = len(content) - _CHECKSUM
    while at < end:
        signature, size = struct.unpack_from(">4sI", content, at)
        after = at + 8 + size
        if signature not in _CACHES:
            yield (content[at:after],)
        at = after
    if at != end:
        raise ValueError("it does not end where it says")
