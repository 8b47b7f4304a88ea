"""Tests against a real PostgreSQL in a container: they commit, drop and alter what they like.

One server for the run, filled once; its data directory is brought back after every test.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pytest_sandpoint import Checkpoint, CheckpointFactory, DockerSandbox, docker_sandbox_fixture

DATA = "/srv/postgres"
"""On the container's own filesystem: the image's own data directory is a volume."""

# Debian and its images keep PostgreSQL's programs out of PATH.
_FIND = 'PATH="$PATH:$(echo /usr/lib/postgresql/*/bin)" && exec "$@"'
_SETTINGS = "-c listen_addresses= -c unix_socket_directories=/tmp -c fsync=off"


class Postgres:
    """A server on the data directory of a container."""

    def __init__(self, container: DockerSandbox) -> None:
        container.exec(["install", "-d", "-o", "postgres", "-m", "700", DATA])
        self.container = container
        self._run("initdb", "--no-sync", "--auth=trust", DATA)
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", DATA, "-l", "/tmp/postgres.log", "-o", _SETTINGS)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-D", DATA, "-m", "fast")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """A server keeps in memory what its files say: they are exchanged while it is down."""
        self.stop()
        yield
        self.start()

    def ask(self, statement: str) -> str:
        return self._run("psql", "-h", "/tmp", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement).strip()

    def _run(self, *argv: str) -> str:
        return self.container.exec(["sh", "-c", _FIND, "sh", *argv], user="postgres", workdir="/").stdout


container = docker_sandbox_fixture(
    os.environ.get("POSTGRES_IMAGE", "postgres:16"),
    scope="session",
    entrypoint=[],
    command=["sleep", "infinity"],  # not the server: it is stopped now and then, and the container is to stay
)


@pytest.fixture(scope="session")
def server(container: DockerSandbox) -> Postgres:
    server = Postgres(container)
    server.ask("CREATE TABLE accounts (owner text PRIMARY KEY, balance integer CHECK (balance >= 0))")
    server.ask("INSERT INTO accounts VALUES ('ada', 100), ('grace', 100)")
    return server


@pytest.fixture(scope="session")
def filled(server: Postgres, sandbox_checkpoint_session: CheckpointFactory) -> Checkpoint:
    return sandbox_checkpoint_session(DATA, sandbox=server.container.sandbox, around=server.stopped)


@pytest.fixture
def bank(server: Postgres, filled: Checkpoint) -> Iterator[Postgres]:
    yield server
    filled.restore()


BALANCES = "SELECT string_agg(owner || ' ' || balance, ', ' ORDER BY owner) FROM accounts"
TRANSFER = """
    BEGIN;
    UPDATE accounts SET balance = balance - {amount} WHERE owner = 'ada';
    UPDATE accounts SET balance = balance + {amount} WHERE owner = 'grace';
    COMMIT;
"""


@pytest.mark.parametrize("amount", [1, 50, 100])
def test_a_transfer_is_committed(bank: Postgres, amount: int) -> None:
    bank.ask(TRANSFER.format(amount=amount))
    assert bank.ask(BALANCES) == f"ada {100 - amount}, grace {100 + amount}"


def test_nobody_gives_what_they_have_not(bank: Postgres) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="psql"):
        bank.ask(TRANSFER.format(amount=101))
    assert bank.ask(BALANCES) == "ada 100, grace 100"


def test_a_migration_changes_the_schema(bank: Postgres) -> None:
    bank.ask("ALTER TABLE accounts RENAME COLUMN balance TO cents")
    bank.ask("DROP TABLE accounts")
    assert bank.ask("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"


def test_the_next_one_finds_the_schema_as_it_was(bank: Postgres) -> None:
    assert bank.ask(BALANCES) == "ada 100, grace 100"
