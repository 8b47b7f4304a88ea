"""Decisions on the namespace that can be taken without entering one."""

import os
import threading

import pytest

from pytest_sandpoint.namespace import MountNamespace, NamespaceError
from pytest_sandpoint.options import PREPARED


def namespaces() -> tuple[str, str]:
    return os.readlink("/proc/self/ns/mnt"), os.readlink("/proc/self/ns/user")


def test_nothing_is_entered_before_it_is_asked_for() -> None:
    before = namespaces()
    namespace = MountNamespace()
    assert not namespace.is_entered
    assert not namespace.was_prepared
    assert not namespace.has_prepared_workers
    assert namespace.is_ordinary == (os.geteuid() != 0)
    assert namespaces() == before


def test_threads_that_run_already_are_named_and_refused() -> None:
    before = namespaces()
    namespace = MountNamespace()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="an early one")
    thread.start()
    try:
        with pytest.raises(NamespaceError, match="sandbox_namespace = always") as refusal:
            namespace.enter()
        assert "an early one" in str(refusal.value) or namespace.is_ordinary
    finally:
        end.set()
        thread.join()
    assert not namespace.is_entered
    with pytest.raises(NamespaceError) as later:
        namespace.enter()
    assert later.value is refusal.value, "the first reason is the true one"
    assert namespaces() == before


def test_a_worker_takes_the_note_of_its_controller_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # root needs nothing handed on
    monkeypatch.setenv(PREPARED, "1")
    namespace = MountNamespace()
    assert namespace.has_prepared_workers
    namespace.take_over()
    assert PREPARED not in os.environ
    assert not namespace.was_prepared
    namespace.take_over()
    assert not namespace.has_prepared_workers


def test_root_needs_no_capabilities_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with open("/proc/self/status") as file:
        before = [line for line in file if line.startswith("Cap")]
    with MountNamespace().privileged(), open("/proc/self/status") as file:
        assert [line for line in file if line.startswith("Cap")] == before
