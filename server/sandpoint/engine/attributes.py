"""Setting mode, owner, times and extended attributes of one entry, touching only what differs."""

import errno
import os
import stat

from sandpoint.engine import linux
from sandpoint.engine.manifest import Entry, Xattrs
from sandpoint.engine.plan import Comparison
from sandpoint.engine.walk import read_xattrs

_ENTRY = os.O_PATH | os.O_NOFOLLOW


def adjust(holder: int, name: bytes, wanted: Entry, comparison: Comparison, *, fresh: bool = False) -> None:
    """Give an entry the attributes that a manifest says.

    Args:
        holder: A descriptor of the directory that holds it; with an empty name, of the entry itself.
        name: Its name in there.
        wanted: What it shall have.
        comparison: What can be set here.
        fresh: Whether it was just extracted, so that its extended attributes need no look where none are wanted.

    Raises:
        OSError: An attribute cannot be set.
    """
    status = os.stat(name, dir_fd=holder, follow_symlinks=False) if name else os.fstat(holder)
    where = f"/proc/self/fd/{holder}/{os.fsdecode(name)}" if name else f"/proc/self/fd/{holder}"
    follow = not name
    if comparison.owners and (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid):
        os.chown(where, wanted.uid, wanted.gid, follow_symlinks=follow)
        status = os.stat(where, follow_symlinks=follow)  # chown drops setuid and setgid
    if wanted.xattrs or not fresh:
        _adjust_xattrs(where, wanted.xattrs, comparison, follow=follow)
        status = os.stat(where, follow_symlinks=follow)  # an ACL sets the mode's group bits
    if stat.S_IMODE(status.st_mode) != stat.S_IMODE(wanted.mode) and not wanted.is_symlink:
        change_mode(holder, name, stat.S_IMODE(wanted.mode))
    if status.st_mtime_ns != wanted.mtime_ns:
        os.utime(where, ns=(status.st_atime_ns, wanted.mtime_ns), follow_symlinks=follow)


def change_mode(holder: int, name: bytes, mode: int) -> None:
    """Set the mode of an entry, whatever is put in its place meanwhile.

    Raises:
        OSError: ELOOP for a symlink.
    """
    if not name:
        os.fchmod(holder, mode)
        return
    # chmod follows links; a descriptor of the entry itself cannot be turned into one.
    fd = linux.openat2(name, _ENTRY, dir_fd=holder, resolve=linux.NO_LINKS | linux.RESOLVE_BENEATH)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, "it became a symlink meanwhile", os.fsdecode(name))
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _adjust_xattrs(where: str, wanted: Xattrs | None, comparison: Comparison, *, follow: bool) -> None:
    present = comparison.settable(read_xattrs(where, follow_symlinks=follow))
    target = comparison.settable(wanted)
    for name in present.keys() - target.keys():
        os.removexattr(where, name, follow_symlinks=follow)
    for name, value in target.items():
        if present.get(name) != value:
            os.setxattr(where, name, value, follow_symlinks=follow)
