"""The queue: one at a time, in order of arrival, across threads and processes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sandpoint.engine.turns import Ticket

PROCESS = """
import sys, time
from sandpoint.engine.turns import Ticket
ticket = Ticket(sys.argv[1])
print("drawn", flush=True)
while not ticket.is_next():
    time.sleep(0.002)
with open(sys.argv[2], "a") as log:
    log.write(f"in {sys.argv[3]}\\n"); log.flush()
    time.sleep(0.01)
    log.write(f"out {sys.argv[3]}\\n")
ticket.give_back()
"""
HOLDER = """
import sys, time
from sandpoint.engine.turns import Ticket
ticket = Ticket(sys.argv[1])
print("drawn", flush=True)
time.sleep(600)
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "drawn\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    process.wait(timeout=30)


def wait_for(ticket: Ticket) -> None:
    deadline = time.monotonic() + 30
    while not ticket.is_next():
        assert time.monotonic() < deadline, "the turn does not come"
        time.sleep(0.001)


def test_the_first_is_next_and_the_second_waits(tmp_path: Path) -> None:
    first, second = Ticket(str(tmp_path)), Ticket(str(tmp_path))
    assert first.is_next()
    assert not second.is_next()
    first.give_back()
    assert second.is_next()
    second.give_back()
    assert os.listdir(tmp_path) == ["lock"]


def test_whoever_is_in_stays_in_while_others_come(tmp_path: Path) -> None:
    tickets = [Ticket(str(tmp_path)) for _ in range(5)]
    for _ in range(3):
        assert [ticket.is_next() for ticket in tickets] == [True, False, False, False, False]
    for ticket in tickets:
        ticket.give_back()


def test_a_waiter_who_gives_up_lets_the_others_by(tmp_path: Path) -> None:
    first, second, third = (Ticket(str(tmp_path)) for _ in range(3))
    second.give_back()
    assert not third.is_next()
    first.give_back()
    assert third.is_next()
    third.give_back()


def test_a_late_comer_does_not_overtake_when_the_queue_was_empty_between(tmp_path: Path) -> None:
    first = Ticket(str(tmp_path))
    first.give_back()
    second, third = Ticket(str(tmp_path)), Ticket(str(tmp_path))
    assert second.is_next()
    assert not third.is_next()
    second.give_back()
    third.give_back()


def test_many_processes_come_in_the_order_of_their_arrival(tmp_path: Path) -> None:
    log = tmp_path / "log"
    first = Ticket(f"{tmp_path}/turns")
    processes = [start(PROCESS, f"{tmp_path}/turns", str(log), str(n)) for n in range(8)]
    assert not log.exists()
    first.give_back()
    for process in processes:
        end(process)
    expected = [f"{step} {n}" for n in range(8) for step in ("in", "out")]
    assert log.read_text().splitlines() == expected


def test_threads_are_never_in_together(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            ticket = Ticket(str(tmp_path))
            wait_for(ticket)
            inside.append(number)
            most.append(len(inside))
            time.sleep(0)
            inside.remove(number)
            ticket.give_back()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 80


@pytest.mark.parametrize("when", ["in", "waiting"])
def test_a_killed_process_does_not_hold_up_the_others(tmp_path: Path, when: str) -> None:
    before = Ticket(str(tmp_path)) if when == "waiting" else None
    process = start(HOLDER, str(tmp_path))
    ticket = Ticket(str(tmp_path))
    assert not ticket.is_next()
    process.send_signal(signal.SIGKILL)
    end(process)
    if before is not None:
        assert not ticket.is_next()
        before.give_back()
    assert ticket.is_next()
    ticket.give_back()
    assert os.listdir(tmp_path) == ["lock"]


def test_a_child_does_not_inherit_its_parents_place(tmp_path: Path) -> None:
    ticket = Ticket(str(tmp_path))
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        ticket.give_back()
        following = Ticket(str(tmp_path))
        assert following.is_next()
        following.give_back()
    finally:
        child.kill()
        child.wait()


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Ticket(f"{tmp_path}/file/turns")
