"""System calls that Python does not offer, with typed wrappers that raise `OSError` with the path.

Numbers and structures are those of the kernel's UAPI headers (`linux/openat2.h`, `linux/mount.h`, `linux/loop.h`),
the same on x86-64 and arm64.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

_libc = ctypes.CDLL(None, use_errno=True)
_held_libc = ctypes.PyDLL(None)
"""For calls of a microsecond or two: no other thread gets in between."""

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_SYS_OPENAT2 = 437
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442

_M_ARENA_MAX = -8

_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

_MANY_LAYERS = 64
"""From here on by steps: the option string ends at a page, and in the kernel at 100 to 200 layers."""
_OPTIONS_BYTES = 4096

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
NO_LINKS = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_NOSYMFOLLOW = 0x100
_MOUNT_ATTRIBUTES = {MS_RDONLY: 1, MS_NOSUID: 2, MS_NODEV: 4, MS_NOEXEC: 8}
"""The same for a mount that is made by steps."""
MS_REMOUNT = 0x20
MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MS_SLAVE = 1 << 19
_MNT_DETACH = 0x2
_MNT_EXPIRE = 0x4
_UMOUNT_NOFOLLOW = 0x8

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2

_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOUNT_ATTR_RDONLY = 0x00000001
_MOUNT_ATTR_NOSUID = 0x00000002
_MOUNT_ATTR_NODEV = 0x00000004
_MOUNT_ATTR_NOEXEC = 0x00000008
_MOUNT_ATTR_NOATIME = 0x00000010
_MOUNT_ATTR_NOATIME_MASK = 0x00000070
_MOUNT_ATTR_NOSYMFOLLOW = 0x00200000
_HARMLESS = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_NOEXEC | _MOUNT_ATTR_NOSYMFOLLOW
"""Of a mount whose tree is hostile: nothing in it leads elsewhere, or is run, for programs that go by paths."""

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000
_CLONE_NEWUSER = 0x10000000

CAP_DAC_OVERRIDE = 1
CAP_SYS_ADMIN = 21
_CAPABILITY_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_SYNC_FILE_RANGE_WAIT_BEFORE = 1
_SYNC_FILE_RANGE_WRITE = 2
_FICLONE = 0x40049409
_OVERLAYFS_MAGIC = 0x794C7630
_STATFS_BYTES = 256  # of struct statfs, which is shorter

_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_STAMP = 0x80 | 0x100  # ctime, inode number
_STATX = struct.Struct("=32xQ56xqI28xII")  # of struct statx: inode, ctime, device
_statx_buffer = ctypes.create_string_buffer(256)

Stamp = tuple[int, int, int, int, int]
"""Of an entry: its inode number, ctime (seconds and nanoseconds) and device (major and minor)."""
NO_STAMP: Stamp = (-1, -1, -1, -1, -1)

_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_CONFIG_SIZE = 304
_LOOP_FLAGS_OFFSET = 8 + 52  # fd, block_size, then lo_flags within struct loop_info64
_LOOP_STATUS = struct.Struct("=QQ8xQQ12xI176x")  # of struct loop_info64: device, inode, offset, size limit, flags
_LOOP_TRIES = 64


def _check(result: int, path: bytes | str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
    return result


def openat2(path: bytes, flags: int, *, dir_fd: int = AT_FDCWD, mode: int = 0, resolve: int = 0) -> int:
    """Open a path with the kernel's limits on its resolution; the descriptor is close-on-exec.

    Raises:
        OSError: ELOOP where a symlink is in the way, EXDEV where the path leads out, else as open(2).
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    while True:
        result = _libc.syscall(_SYS_OPENAT2, dir_fd, ctypes.c_char_p(path), how, len(how))
        # EAGAIN: something was renamed or mounted while '..' was resolved; the kernel asks to try again.
        if result >= 0 or ctypes.get_errno() not in {errno.EINTR, errno.EAGAIN}:
            return _check(result, path)


def rename_new(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Rename to a name that must be free.

    Raises:
        FileExistsError: The name is taken.
    """
    _renameat2(source_fd, source, target_fd, target, _RENAME_NOREPLACE)


def exchange(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """Let two names change their files, at once.

    Raises:
        OSError: EINVAL on filesystems that cannot.
    """
    _renameat2(source_fd, source, target_fd, target, _RENAME_EXCHANGE)


def _renameat2(source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int) -> None:
    result = _libc.renameat2(
        source_fd, ctypes.c_char_p(source), target_fd, ctypes.c_char_p(target), ctypes.c_uint(flags)
    )
    _check(result, target)


def mount(source: str, target: bytes, fstype: str, flags: int, data: bytes = b"") -> None:
    """Mount a filesystem; the arguments are those of the system call of that name."""
    result = _libc.mount(
        ctypes.c_char_p(os.fsencode(source)),
        ctypes.c_char_p(target),
        ctypes.c_char_p(fstype.encode()),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(data),
    )
    _check(result, target)


def mount_overlay(
    source: str,
    target: bytes,
    flags: int,
    *,
    lower: Sequence[bytes],
    upper: bytes | None,
    work: bytes | None,
    options: Mapping[bytes, bytes],
) -> None:
    """Mount an overlay.

    Args:
        source: Shown in the mount table.
        target: Where.
        flags: As for `mount`.
        lower: The lower layers, the topmost first; at most 500.
        upper: The upper layer; None for one that cannot be written.
        work: A folder on the upper layer's filesystem.
        options: Others, by name.

    Raises:
        OSError: EINVAL for more layers than the kernel takes, or for more than about a hundred before Linux 6.8.
    """
    if len(lower) > _MANY_LAYERS:
        _mount_overlay_by_steps(source, target, flags, lower, upper, work, options)
        return
    chosen = {b"lowerdir": b":".join(map(_escape, lower)), **options}
    if upper is not None and work is not None:
        chosen |= {b"upperdir": _escape(upper), b"workdir": _escape(work)}
    data = b",".join(name + b"=" + value for name, value in chosen.items())
    if len(data) >= _OPTIONS_BYTES:
        raise OSError(errno.ENAMETOOLONG, "the paths are too long for a mount", os.fsdecode(target))
    mount(source, target, "overlay", flags, data)


def _escape(path: bytes) -> bytes:
    return path.replace(b"\\", b"\\\\").replace(b",", b"\\,").replace(b":", b"\\:")


def _mount_overlay_by_steps(
    source: str,
    target: bytes,
    flags: int,
    lower: Sequence[bytes],
    upper: bytes | None,
    work: bytes | None,
    options: Mapping[bytes, bytes],
) -> None:
    context = _check(_libc.syscall(_SYS_FSOPEN, ctypes.c_char_p(b"overlay"), _FSOPEN_CLOEXEC), target)
    try:
        steps = [(b"source", os.fsencode(source)), *((b"lowerdir+", path) for path in lower), *options.items()]
        if upper is not None and work is not None:
            steps += [(b"upperdir", upper), (b"workdir", work)]
        for name, value in steps:
            _fsconfig(context, _FSCONFIG_SET_STRING, name, value, target)
        if flags & MS_RDONLY:
            _fsconfig(context, _FSCONFIG_SET_FLAG, b"ro", None, target)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None, target)
        attributes = sum(attribute for flag, attribute in _MOUNT_ATTRIBUTES.items() if flags & flag)
        made = _check(_libc.syscall(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes), target)
    finally:
        os.close(context)
    try:
        move_mount_to(made, target)
    finally:
        os.close(made)


def _fsconfig(context: int, command: int, name: bytes | None, value: bytes | None, target: bytes) -> None:
    result = _libc.syscall(_SYS_FSCONFIG, context, command, ctypes.c_char_p(name), ctypes.c_char_p(value), 0)
    _check(result, target)


def move_mount_to(mount: int, target: bytes) -> None:
    """Mount what appears nowhere on the directory of a path."""
    result = _libc.syscall(
        _SYS_MOVE_MOUNT, mount, ctypes.c_char_p(b""), AT_FDCWD, ctypes.c_char_p(target), _MOVE_MOUNT_F_EMPTY_PATH
    )
    _check(result, target)


def move_mount(mount: int, directory: int) -> None:
    """Mount what appears nowhere on an open directory of this mount namespace."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    result = _libc.syscall(_SYS_MOVE_MOUNT, mount, ctypes.c_char_p(b""), directory, ctypes.c_char_p(b""), flags)
    _check(result, "mount")


def clone_mount(fd: int) -> int:
    """Return a mount that appears nowhere, of the mount whose top is an open directory, without those below it.

    It ends with the descriptor, unless `move_mount` has put it somewhere.

    Raises:
        OSError: EINVAL for one that is neither of this mount namespace nor a mount that appears nowhere.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH
    return _check(_libc.syscall(_SYS_OPEN_TREE, fd, ctypes.c_char_p(b""), flags), "mount")


def join_mount_namespace(namespace: int) -> None:
    """Enter a mount namespace, in a process of one thread; its root becomes root and working directory.

    Raises:
        OSError: EINVAL in a process of several threads; EPERM where that is not allowed.
    """
    _check(_libc.setns(namespace, _CLONE_NEWNS), "mount namespace")


def bind(source: bytes, target: bytes) -> None:
    """Make the mount at one place appear at another too, without the mounts below it."""
    mount(os.fsdecode(source), target, "none", MS_BIND)


def detach(target: bytes) -> None:
    """Take a mount away at once; it ends when the last process leaves it."""
    _check(_libc.umount2(ctypes.c_char_p(target), _MNT_DETACH | _UMOUNT_NOFOLLOW), target)


def detach_open(fd: int) -> None:
    """Take away the mount whose top is an open directory."""
    target = b"/proc/self/fd/%d" % fd
    _check(_libc.umount2(ctypes.c_char_p(target), _MNT_DETACH), target)


def detach_cwd(fd: int) -> None:
    """Take away the mount whose top is an open directory, by way of the working directory: no /proc is needed."""
    os.fchdir(fd)
    try:
        _check(_libc.umount2(ctypes.c_char_p(b"."), _MNT_DETACH), ".")
    finally:
        os.chdir("/")


def is_in_use(target: bytes) -> bool:
    """Whether a process has a file open on a mount or its working directory in it; nothing is unmounted.

    Raises:
        OSError: EINVAL where nothing is mounted.
    """
    # The first call with this flag only marks a mount that nobody uses, and says EAGAIN.
    result = _libc.umount2(ctypes.c_char_p(target), _MNT_EXPIRE | _UMOUNT_NOFOLLOW)
    number = ctypes.get_errno()
    if result < 0 and number in {errno.EAGAIN, errno.EBUSY}:
        if number == errno.EAGAIN:
            os.close(os.open(target, os.O_PATH | os.O_NOFOLLOW))  # takes the mark away: a second call would unmount
        return number == errno.EBUSY
    _check(result, target)
    raise OSError(errno.ESTALE, "it was unmounted: somebody else asked the same", os.fsdecode(target))


def clone_for_reading(fd: int, path: bytes) -> int:
    """Return a descriptor of a private view of a directory that is read-only: no symlink leads anywhere, no device.

    The view appears in no mount table and ends with the descriptor. It holds the mounts below the directory.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN; ENOSYS or EINVAL before Linux 5.14.
    """
    attributes = _MOUNT_ATTR_RDONLY | _HARMLESS
    try:
        return _clone_with(
            fd, path, attributes | _MOUNT_ATTR_NOATIME, without=_MOUNT_ATTR_NOATIME_MASK, flags=AT_RECURSIVE
        )
    except PermissionError:  # in another user namespace, where a mount's way with atimes may not be changed
        return _clone_with(fd, path, attributes, without=0, flags=AT_RECURSIVE)


def clone_for_writing(fd: int, path: bytes) -> int:
    """Return a view as `clone_for_reading` does that can be written, without the mounts below the directory.

    Nothing can be renamed between the view and the directory itself.
    """
    return _clone_with(fd, path, _HARMLESS, without=0, flags=0)


def _clone_with(fd: int, path: bytes, attributes: int, *, without: int, flags: int) -> int:
    tree_flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | flags
    view = _check(_libc.syscall(_SYS_OPEN_TREE, fd, ctypes.c_char_p(b""), tree_flags), path)
    change = struct.pack("QQQQ", attributes, without, _MS_PRIVATE, 0)
    try:
        result = _libc.syscall(
            _SYS_MOUNT_SETATTR, view, ctypes.c_char_p(b""), AT_EMPTY_PATH | flags, change, len(change)
        )
        _check(result, path)
    except OSError:
        os.close(view)
        raise
    return view


@contextmanager
def loop_device(image: bytes, attached: Mapping[bytes, Sequence[str]] | None = None) -> Iterator[str]:
    """Yield the path of a loop device that shows a file, read-only: one that does already, else a free one.

    Mounts of one device share what the kernel keeps of it in memory. The device is freed when the block ends and no
    mount uses it any more, also if the process is killed.

    Args:
        image: The file.
        attached: What `attached_images` returned a moment ago.
    """
    image_fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        shared = _open_attached(image_fd, (attached or {}).get(os.path.realpath(image), ()))
        device_fd, device = shared or _attach(image_fd)
    finally:
        os.close(image_fd)
    try:
        yield device
    finally:
        os.close(device_fd)


def attached_images() -> dict[bytes, list[str]]:
    """Return the loop devices in use, by the path that their file had when it was attached."""
    images: dict[bytes, list[str]] = {}
    for name in os.listdir("/sys/block"):
        with suppress(OSError), open(f"/sys/block/{name}/loop/backing_file", "rb") as file:
            images.setdefault(file.read().rstrip(b"\n"), []).append(f"/dev/{name}")
    return images


def _open_attached(image_fd: int, devices: Iterable[str]) -> tuple[int, str] | None:
    """Open the first of some loop devices that shows just this file; while it is open it goes on showing it."""
    image = os.fstat(image_fd)
    status = bytearray(_LOOP_STATUS.size)
    for device in devices:
        try:
            device_fd = _open_loop(device)
        except OSError:
            continue
        with suppress(OSError):
            fcntl.ioctl(device_fd, _LOOP_GET_STATUS64, status)
            dev, ino, offset, limit, flags = _LOOP_STATUS.unpack(status)
            if (dev, ino, offset, limit) == (image.st_dev, image.st_ino, 0, 0) and flags & _LO_FLAGS_READ_ONLY:
                return device_fd, device
        os.close(device_fd)
    return None


def _attach(image_fd: int) -> tuple[int, str]:
    config = bytearray(_LOOP_CONFIG_SIZE)
    struct.pack_into("=II", config, 0, image_fd, 0)
    struct.pack_into("=I", config, _LOOP_FLAGS_OFFSET, _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(_LOOP_TRIES):
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device_fd = _open_loop(device)
            try:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # another process took it between the two calls
                    raise OSError(error.errno, error.strerror, device) from None
                time.sleep(0.001 * attempt)
            else:
                return device_fd, device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device", "/dev/loop-control")


def _open_loop(device: str) -> int:
    try:
        return os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # in a container nobody makes the nodes of new devices
        with open(f"/sys/block/{os.path.basename(device)}/dev") as file:
            major, _, minor = file.read().strip().partition(":")
        with suppress(FileExistsError):
            os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
        return os.open(device, os.O_RDONLY | os.O_CLOEXEC)


def take_own_cwd() -> bool:
    """Give this thread a working directory of its own, for the rest of its life; return whether that is possible."""
    return bool(_libc.unshare(_CLONE_FS) == 0)


def enter_mount_namespace() -> None:
    """Give this thread and its later children mounts of their own; mounts made outside still arrive.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "mount namespace")
    mount("none", b"/", "none", _MS_REC | _MS_SLAVE)


def enter_user_namespace() -> None:
    """Give this process a user and a mount namespace of its own, with all capabilities there and the same ids.

    No other user or group has a number in there: other people's files seem to belong to nobody (65534).

    Raises:
        OSError: EINVAL in a process of several threads; EPERM, ENOSPC or EUSERS where a policy refuses.
    """
    user, group = os.geteuid(), os.getegid()
    _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "user namespace")
    for name, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)


def capabilities() -> tuple[int, int, int]:
    """Return this thread's effective, permitted and inheritable capabilities, a bit for each number."""
    data = ctypes.create_string_buffer(24)
    _check(_libc.capget(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), data), "capabilities")
    words = struct.unpack("6I", data.raw)
    effective, permitted, inheritable = (words[index] | words[index + 3] << 32 for index in range(3))
    return effective, permitted, inheritable


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capabilities.

    Raises:
        OSError: EPERM for one that is not permitted.
    """
    sets = (effective, permitted, inheritable)
    data = struct.pack("6I", *(each & 0xFFFFFFFF for each in sets), *(each >> 32 for each in sets))
    _check(_libc.capset(struct.pack("Ii", _CAPABILITY_VERSION_3, 0), data), "capabilities")


def raise_ambient(capability: int) -> None:
    """Let programs that this thread starts have a capability that is permitted and inheritable here."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, ctypes.c_ulong(capability), 0, 0), "capabilities")


def clear_ambient() -> None:
    """Let programs that this thread starts have no capabilities of it."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "capabilities")


def write_out(fd: int) -> None:
    """Begin to write all of a file's changed pages to disk: a later write through a mapping is stamped.

    It waits only for pages that are being written already: they would be passed over, and could be changed unseen. On
    an overlay, whose files have no pages of their own, it waits for all.
    """
    if _is_on_overlay(fd):
        os.fdatasync(fd)
        return
    flags = _SYNC_FILE_RANGE_WAIT_BEFORE | _SYNC_FILE_RANGE_WRITE
    _check(_libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), flags), str(fd))


def _is_on_overlay(fd: int) -> bool:
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    _check(_libc.fstatfs(fd, buffer), str(fd))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == _OVERLAYFS_MAGIC


def reflink(source: int, target: int) -> None:
    """Let an empty file share another's blocks until one of them is written to.

    Raises:
        OSError: EOPNOTSUPP, EXDEV or EINVAL on filesystems that cannot.
    """
    fcntl.ioctl(target, _FICLONE, source)


def sync_filesystem(fd: int, path: str) -> None:
    """Write all changes of the filesystem that a descriptor is on to disk; see syncfs(2)."""
    _check(_libc.syncfs(fd), path)


def stamp(fd: int, name: bytes) -> Stamp:
    """Return the stamp of an entry of an open directory; `NO_STAMP` where it cannot be told. No link is followed."""
    if _held_libc.statx(fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_STAMP, _statx_buffer):
        return NO_STAMP
    found: Stamp = _STATX.unpack_from(_statx_buffer)
    return found


def other_stamps(fd: int, names: Sequence[bytes], seen: Sequence[Stamp]) -> list[bytes]:
    """Return the names in an open directory whose stamps are not those seen, or were not to be told.

    As quick as Python can: the callers count microseconds. Not for several threads at a time.
    """
    statx, unpack, buffer = _held_libc.statx, _STATX.unpack_from, _statx_buffer
    return [
        name
        for name, stamp in zip(names, seen, strict=True)
        if statx(fd, name, _AT_SYMLINK_NOFOLLOW, _STATX_STAMP, buffer) or unpack(buffer) != stamp
    ]


def status_of_stamp(stamp: Stamp) -> tuple[int, int, int]:
    """Return the device, inode number and ctime in nanoseconds that a stamp tells."""
    inode, seconds, nanoseconds, major, minor = stamp
    return (os.makedev(major, minor) if stamp != NO_STAMP else -1), inode, seconds * 1_000_000_000 + nanoseconds


def mount_id(fd: int) -> int:
    """Return the id of the mount that a descriptor is on, as in `/proc/self/mountinfo`."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"mnt_id:"):
                return int(line.split()[1])
    raise OSError(errno.ENOSYS, "the kernel does not tell the mount of a descriptor", f"/proc/self/fdinfo/{fd}")


def limit_heaps(number: int) -> None:
    """Let threads share so many heaps: glibc gives each its own, and takes back little of what one has held."""
    mallopt = getattr(_libc, "mallopt", None)  # of glibc alone
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, number)
