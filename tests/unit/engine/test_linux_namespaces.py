"""Namespaces, capabilities and mounts in use: each in a process of its own, never in the tests'."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from helpers import ordinary
from helpers.place import mounted, mounts_in, tmpfs
from helpers.trees import write
from sandpoint.engine import linux

_BEGIN = """
import errno, json, os, subprocess, sys, threading
from sandpoint.engine import linux
NEEDED = 1 << linux.CAP_SYS_ADMIN | 1 << linux.CAP_DAC_OVERRIDE
def namespaces():
    return {name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "user")}
def status(name):
    with open("/proc/self/status") as file:
        return next(line.split()[1] for line in file if line.startswith(name + ":"))
def in_program(code):
    return json.loads(subprocess.run([sys.executable, "-c", PROLOGUE + code], capture_output=True, check=True).stdout)
PROLOGUE = "import json, os\\nfrom sandpoint.engine import linux\\n"
def number_of(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return error.errno
    return 0
"""


def as_root(script: str, *arguments: Path) -> Any:
    """Run a script in a process of its own, and return what it prints as JSON."""
    argv = [sys.executable, "-c", _BEGIN + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_user(tmp_path: Path, script: str) -> Any:
    """Run a script as an ordinary user in its home, and return what it prints as JSON."""
    argv = [sys.executable, "-c", _BEGIN + textwrap.dedent(script)]
    done = ordinary.run(argv, cwd=tmp_path / "home", home=tmp_path / "home", timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", ordinary.UID, ordinary.GID)


# -- mount namespaces --


def test_what_is_mounted_in_a_namespace_of_its_own_is_seen_nowhere_else(tmp_path: Path) -> None:
    point = tmp_path / "point"
    write(point / "file", b"outside")
    found = as_root(
        """
        before = namespaces()
        linux.enter_mount_namespace()
        linux.mount("x", os.fsencode(sys.argv[1]), "tmpfs", 0)
        child = in_program(f"print(json.dumps(os.listdir({sys.argv[1]!r})))")
        threads = []
        thread = threading.Thread(target=lambda: threads.append(os.listdir(sys.argv[1])))
        thread.start()
        thread.join()
        after = namespaces()
        outside = os.listdir(f"/proc/{os.getppid()}/root" + sys.argv[1])
        print(json.dumps([os.listdir(sys.argv[1]), child, threads, before["mnt"] != after["mnt"],
                          before["user"] == after["user"], outside]))
        """,
        point,
    )
    assert found == [[], [], [[]], True, True, ["file"]]
    assert mounts_in(point) == []
    assert (point / "file").read_bytes() == b"outside"


def test_what_is_mounted_outside_arrives_in_the_namespace(tmp_path: Path) -> None:
    shared, point = tmp_path / "shared", tmp_path / "shared" / "point"
    point.mkdir(parents=True)
    script = """
        linux.enter_mount_namespace()
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(os.listdir(sys.argv[1])))
        """
    argv = [sys.executable, "-c", _BEGIN + textwrap.dedent(script), str(point)]
    with mounted(shared, "--bind", str(shared)):
        subprocess.run(["mount", "--make-shared", shared], check=True)
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with tmpfs(point) as mount:
                write(mount / "from outside", b"x")
                process.stdin.write("\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline()) == ["from outside"]


def test_an_ordinary_user_gets_no_mount_namespace_without_a_user_namespace(tmp_path: Path) -> None:
    found = as_user(
        tmp_path,
        """
        before = namespaces()
        print(json.dumps([number_of(linux.enter_mount_namespace), namespaces() == before]))
        """,
    )
    assert found == [errno.EPERM, True]


# -- user namespaces --


def test_an_ordinary_user_gets_all_capabilities_in_a_namespace_and_keeps_its_ids(tmp_path: Path) -> None:
    write(tmp_path / "home" / "roots", b"x")
    found = as_user(
        tmp_path,
        """
        outside = namespaces()
        before = linux.capabilities()
        linux.enter_user_namespace()
        effective, permitted, inheritable = linux.capabilities()
        os.mkdir("point")
        linux.mount("x", b"point", "tmpfs", 0)
        with open("point/file", "w") as file:
            file.write("x")
        with open("own", "w") as file:
            file.write("x")
        status = os.stat("own")
        print(json.dumps([
            before,
            [effective & NEEDED == NEEDED, permitted & NEEDED == NEEDED, inheritable],
            [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
            [status.st_uid, status.st_gid],
            os.stat("roots").st_uid,
            [name for name, link in namespaces().items() if outside[name] != link],
            open("/proc/self/setgroups").read().strip(),
        ]))
        """,
    )
    user, group = ordinary.UID, ordinary.GID
    assert found == [
        [0, 0, 0],
        [True, True, 0],
        [user, user, group, group],
        [user, group],
        65534,
        ["mnt", "user"],
        "deny",
    ]
    assert os.listdir(tmp_path / "home" / "point") == []
    assert (tmp_path / "home" / "own").stat().st_uid == user


def test_a_process_with_threads_gets_no_user_namespace(tmp_path: Path) -> None:
    found = as_user(
        tmp_path,
        """
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        before = namespaces()
        number = number_of(linux.enter_user_namespace)
        same = namespaces() == before
        end.set()
        thread.join()
        print(json.dumps([number, same]))
        """,
    )
    assert found == [errno.EINVAL, True]


def test_root_can_have_a_user_namespace_too(tmp_path: Path) -> None:
    found = as_root(
        """
        linux.enter_user_namespace()
        linux.mount("x", os.fsencode(sys.argv[1]), "tmpfs", 0)
        print(json.dumps([os.getuid(), os.getgid(), os.listdir(sys.argv[1])]))
        """,
        tmp_path,
    )
    assert found == [0, 0, []]
    assert mounts_in(tmp_path) == []


def test_where_a_policy_refuses_user_namespaces_it_is_an_error(tmp_path: Path) -> None:
    # The limit is that of a user namespace around this one: the machine's own is left alone.
    found = as_root(
        """
        linux.enter_user_namespace()
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
        before = namespaces()
        print(json.dumps([number_of(linux.enter_user_namespace), namespaces() == before]))
        """
    )
    assert found == [errno.ENOSPC, True]


# -- capabilities --


def test_capabilities_are_those_that_the_kernel_tells(tmp_path: Path) -> None:
    script = """
        effective, permitted, inheritable = linux.capabilities()
        told = [int(status(name), 16) for name in ("CapEff", "CapPrm", "CapInh")]
        print(json.dumps([told == [effective, permitted, inheritable], effective]))
        """
    same, effective = as_root(script)
    assert same
    assert effective == linux.capabilities()[0]
    assert effective >> linux.CAP_SYS_ADMIN & 1
    assert as_user(tmp_path, script) == [True, 0]


def test_capabilities_are_laid_down_and_taken_up_again_while_they_are_permitted() -> None:
    found = as_root(
        """
        every = linux.capabilities()[1]
        seen = []
        for effective, permitted, inheritable in (
            (0, every, 0), (every, every, every), (NEEDED, NEEDED, 0), (0, NEEDED, NEEDED), (NEEDED, NEEDED, 0)
        ):
            linux.set_capabilities(effective, permitted, inheritable)
            seen.append(linux.capabilities() == (effective, permitted, inheritable))
        more = number_of(linux.set_capabilities, every, every, 0)
        print(json.dumps([seen, more, linux.capabilities() == (NEEDED, NEEDED, 0), every >> 32 != 0]))
        """
    )
    assert found == [[True] * 5, errno.EPERM, True, True]


def test_without_its_capabilities_root_mounts_nothing(tmp_path: Path) -> None:
    found = as_root(
        """
        linux.enter_mount_namespace()
        point = os.fsencode(sys.argv[1])
        linux.set_capabilities(0, NEEDED, 0)
        without = number_of(linux.mount, "x", point, "tmpfs", 0)
        linux.set_capabilities(NEEDED, NEEDED, 0)
        linux.mount("x", point, "tmpfs", 0)
        linux.set_capabilities(0, NEEDED, 0)
        still = number_of(linux.detach, point)
        print(json.dumps([without, still]))
        """,
        tmp_path,
    )
    assert found == [errno.EPERM, errno.EPERM]


def test_capabilities_are_those_of_one_thread() -> None:
    found = as_root(
        """
        def drop():
            linux.set_capabilities(0, NEEDED, 0)
            seen.append(linux.capabilities()[0])
        seen = []
        thread = threading.Thread(target=drop)
        thread.start()
        thread.join()
        print(json.dumps([seen, linux.capabilities()[0] & NEEDED == NEEDED]))
        """
    )
    assert found == [[0], True]


def test_ambient_capabilities_reach_the_programs_that_are_started_until_they_are_cleared(tmp_path: Path) -> None:
    found = as_user(
        tmp_path,
        """
        tell = "print(json.dumps(linux.capabilities()))"
        linux.enter_user_namespace()
        linux.set_capabilities(0, NEEDED, NEEDED)
        programs = [in_program(tell)]
        for capability in (linux.CAP_SYS_ADMIN, linux.CAP_DAC_OVERRIDE):
            linux.raise_ambient(capability)
        own = linux.capabilities()
        programs.append(in_program(tell))
        programs.append(in_program(
            "linux.enter_mount_namespace()\\n"
            "os.mkdir('point')\\n"
            "linux.mount('x', b'point', 'tmpfs', 0)\\n"
            "print(json.dumps(os.listdir('point')))"
        ))
        programs.append(in_program(
            "linux.clear_ambient()\\n"
            "import subprocess, sys\\n"
            "code = 'import json; from sandpoint.engine import linux; print(json.dumps(linux.capabilities()))'\\n"
            "print(subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout)"
        ))
        linux.clear_ambient()
        programs.append(in_program(tell))
        print(json.dumps([NEEDED, own, programs, os.listdir("point")]))
        """,
    )
    needed, own, programs, _ = found
    assert own == [0, needed, needed]
    assert programs[0] == [0, 0, needed]
    assert programs[1] == [needed, needed, needed]
    assert programs[2] == []
    assert programs[3] == [0, 0, needed]
    assert programs[4] == [0, 0, needed]


def test_what_is_not_permitted_or_not_inheritable_cannot_be_made_ambient() -> None:
    found = as_root(
        """
        linux.set_capabilities(NEEDED, NEEDED, 0)
        not_inheritable = number_of(linux.raise_ambient, linux.CAP_SYS_ADMIN)
        linux.set_capabilities(0, 1 << linux.CAP_DAC_OVERRIDE, 1 << linux.CAP_DAC_OVERRIDE)
        not_permitted = number_of(linux.raise_ambient, linux.CAP_SYS_ADMIN)
        linux.raise_ambient(linux.CAP_DAC_OVERRIDE)
        print(json.dumps([not_inheritable, not_permitted, int(status("CapAmb"), 16)]))
        """
    )
    assert found == [errno.EPERM, errno.EPERM, 1 << linux.CAP_DAC_OVERRIDE]


# -- mounts in use --


def test_an_open_file_a_working_directory_and_a_mapping_are_uses_of_a_mount(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "mount") as mount:
        write(mount / "dir" / "file", b"x" * 4096)
        found = as_root(
            """
            import mmap
            mount = os.fsencode(sys.argv[1])
            seen = [linux.is_in_use(mount), linux.is_in_use(mount)]
            file = open(mount + b"/dir/file", "r+b")
            seen.append(linux.is_in_use(mount))
            mapping = mmap.mmap(file.fileno(), 0)
            file.close()
            seen.append(linux.is_in_use(mount))
            mapping.close()
            seen.append(linux.is_in_use(mount))
            os.chdir(mount + b"/dir")
            seen.append(linux.is_in_use(mount))
            os.chdir("/")
            seen.append(linux.is_in_use(mount))
            fd = os.open(mount, os.O_PATH)
            seen.append(linux.is_in_use(mount))
            os.close(fd)
            seen.append(linux.is_in_use(mount))
            print(json.dumps(seen))
            """,
            mount,
        )
        assert found == [False, False, True, True, False, True, False, True, False]
        assert mounts_in(mount) == [str(mount)]
        assert (mount / "dir" / "file").stat().st_size == 4096


def test_another_processs_use_of_a_mount_counts(tmp_path: Path) -> None:
    script = "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with tmpfs(tmp_path / "mount") as mount:
        file = write(mount / "file", b"x")
        argv = [sys.executable, "-c", script, str(file)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
            assert linux.is_in_use(os.fsencode(mount))
            process.stdin.close()
            process.wait()
        assert not linux.is_in_use(os.fsencode(mount))
        assert mounts_in(mount) == [str(mount)]


def test_a_mount_upon_another_is_a_use_of_it(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "outer") as outer:
        assert not linux.is_in_use(os.fsencode(outer))
        with tmpfs(outer / "inner") as inner:
            assert linux.is_in_use(os.fsencode(outer))
            assert not linux.is_in_use(os.fsencode(inner))
        assert mounts_in(outer) == [str(outer)]


def test_asking_often_never_unmounts(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "mount") as mount:
        write(mount / "file", b"x")
        for _ in range(20):
            linux.is_in_use(os.fsencode(mount))
            assert mounts_in(mount) == [str(mount)]


@pytest.mark.parametrize("name", ["plain", "missing", "link"])
def test_what_is_no_mount_is_not_in_use_but_an_error(tmp_path: Path, name: str) -> None:
    with tmpfs(tmp_path / "mount") as mount:
        (tmp_path / "plain").mkdir()
        (tmp_path / "link").symlink_to(mount)
        with pytest.raises(OSError, match=name) as caught:
            linux.is_in_use(os.fsencode(tmp_path / name))
        assert caught.value.errno == {"plain": errno.EINVAL, "missing": errno.ENOENT, "link": errno.EINVAL}[name]
        assert mounts_in(mount) == [str(mount)]


def test_an_ordinary_user_may_not_ask(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "home" / "mount"):
        found = as_user(tmp_path, """print(json.dumps(number_of(linux.is_in_use, b"mount")))""")
    assert found == errno.EPERM


# -- writing out and sharing --


def test_writing_out_and_sharing_say_which_file_cannot(tmp_path: Path) -> None:
    source, target = write(tmp_path / "source", b"x"), write(tmp_path / "target", b"")
    read, written = os.pipe()
    with source.open("rb") as first, target.open("r+b") as second:
        linux.write_out(first.fileno())
        with pytest.raises(OSError, match=str(read)):
            linux.write_out(read)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - which it is depends on the filesystem
            linux.reflink(read, second.fileno())
        assert caught.value.errno in {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.EBADF}
    os.close(read)
    os.close(written)
