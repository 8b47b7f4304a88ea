"""The server of `sandpoint ui`: who it lets in, what it lets out, and how it ends."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.messages import JSON, call_headers, call_message
from helpers.place import Place
from helpers.site import wait_until
from helpers.trees import assert_same, list_tree, write
from helpers.window import LINK, Window


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    write(place.tree / "file", "content\n")
    return place


@pytest.fixture(scope="module")
def shared_window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    base = tmp_path_factory.mktemp("shared")
    with Window(base, store=base / "store", state=base / "state") as window:
        yield window


def ask(
    window: Window, method: str, path: str, body: Any = None, *, to: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Send a request as a program would, with any headers; return the status, the headers and the text."""
    connection = http.client.HTTPConnection(to, window.port, timeout=60)
    given = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, body=sent, headers=given)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def key(window: Window) -> str:
    """Use the link up as the page does, and return its key."""
    token = window.link.rpartition("=")[2]
    status, _, text = ask(window, "POST", "/session", {"token": token})
    assert status == 200, text
    found: str = json.loads(text)["key"]
    return found


def call(window: Window, key: str | None, tool: str, **arguments: Any) -> tuple[int, str]:
    headers = call_headers(tool) | ({"Authorization": f"Bearer {key}"} if key else {})
    status, _, text = ask(window, "POST", "/mcp", call_message(tool, arguments), **headers)
    return status, text


def test_who_has_used_the_link_may_call_the_tools(shared_window: Window) -> None:
    status, text = call(shared_window, key(shared_window), "list_backups")
    assert status == 200
    assert '"backups":[]' in text


@pytest.mark.parametrize("shown", [None, "", "wrong", "a" * 43])
def test_without_a_key_nothing_is_answered(shown: str | None, shared_window: Window) -> None:
    status, text = call(shared_window, shown, "list_backups")
    assert status == 401
    assert "a link works once" in text
    assert "backups" not in text


@pytest.mark.parametrize(
    "body",
    [
        {"token": "wrong"},
        {"token": ""},
        {"token": None},
        {"token": ["x"]},
        [],
        7,
        b"{",
        b"[" * 4000,
        b"\xff",
        rb'{"token":"\ud800"}',
    ],
)
def test_only_the_links_token_is_exchanged_for_a_key(body: Any, shared_window: Window) -> None:
    status, _, text = ask(shared_window, "POST", "/session", body)
    assert status == 401
    assert '"key"' not in text
    assert LINK.search(shared_window.text)


def test_a_link_works_once_and_the_next_one_is_printed(shared_window: Window) -> None:
    used = shared_window.link
    key(shared_window)
    assert shared_window.link != used
    status, _, _ = ask(shared_window, "POST", "/session", {"token": used.rpartition("=")[2]})
    assert status == 401


def test_a_token_of_any_length_is_not_read_into_memory(shared_window: Window) -> None:
    status, _, _ = ask(shared_window, "POST", "/session", b"x" * 5000)
    assert status == 413


@pytest.mark.parametrize("path", ["/", "/session", "/mcp"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""])
def test_another_name_for_this_machine_is_refused(path: str, host: str, shared_window: Window) -> None:
    status, _, text = ask(shared_window, "GET" if path == "/" else "POST", path, Host=host)
    assert status == 421
    assert "<html" not in text


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_another_sites_page_is_refused_even_with_the_key(origin: str, shared_window: Window) -> None:
    shown = {"Authorization": f"Bearer {key(shared_window)}"}
    status, _, _ = ask(shared_window, "POST", "/mcp", call_message("list_backups", {}), Origin=origin, **shown)
    assert status == 403


def test_the_page_may_run_only_what_it_came_with_and_nobody_may_frame_or_keep_it(shared_window: Window) -> None:
    status, headers, text = ask(shared_window, "GET", "/")
    assert status == 200
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert all(source.startswith("'sha256-") for source in f"{policy['script-src']} {policy['style-src']}".split())
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in headers
    assert text.count("<html") == 1


def test_it_listens_on_this_machine_alone(shared_window: Window) -> None:
    listening = [
        each.laddr
        for each in psutil.Process(shared_window.process.pid).net_connections(kind="inet")
        if each.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", shared_window.port)]


def test_a_port_that_is_taken_is_told(place: Place) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "sandpoint.cli", "ui", str(place.tree), "--no-open", "--port", str(port)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "SANDPOINT_STORE": place.store.as_uri(), "SANDPOINT_STATE_DIR": str(place.state)},
        )
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}: another program does" in done.stderr
    assert "INVALID_BACKUP_CONFIG" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_browser_is_given_the_link_and_the_port_is_the_one_asked_for(place: Place, tmp_path: Path) -> None:
    opened = tmp_path / "opened"
    browser = write(tmp_path / "browser", f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    browser.chmod(0o755)
    window = Window(place.tree, store=place.store, state=place.state, browser=browser)
    with window:
        wait_until(opened.exists, lambda: window.text)
        assert opened.read_text() == window.link


def test_ctrl_c_ends_it_at_once_where_nothing_runs(place: Place) -> None:
    with Window(place.tree, store=place.store, state=place.state) as window:
        held = socket.create_connection(("127.0.0.1", window.port))  # as browsers do
        assert window.interrupt() == 0
        held.close()
        assert "Traceback" not in window.text
        assert "rror" not in window.text


def test_ctrl_c_lets_a_restore_that_runs_end_or_undoes_it(place: Place) -> None:
    for number in range(2000):
        write(place.tree / f"dir{number % 20}" / f"file{number}", f"{number}\n" * 50)
    before = list_tree(place.tree)
    backup = place.create()
    for number in range(0, 2000, 2):
        (place.tree / f"dir{number % 20}" / f"file{number}").unlink()
    broken = list_tree(place.tree)
    with Window(place.tree, store=place.store, state=place.state) as window:
        headers = call_headers("restore_backup") | {"Authorization": f"Bearer {key(window)}"}
        connection = http.client.HTTPConnection("127.0.0.1", window.port, timeout=60)
        body = json.dumps(call_message("restore_backup", {"backup_id": backup.id})).encode()
        connection.request("POST", "/mcp", body=body, headers=headers)
        wait_until(lambda: any((place.state / "turns").glob("*")), lambda: window.text)
        assert window.interrupt() == 0
        connection.close()
    found = list_tree(place.tree)
    assert_same(before if len(found) == len(before) else broken, found)
    assert place.leftovers() == []
