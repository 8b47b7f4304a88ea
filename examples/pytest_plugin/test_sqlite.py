"""A database's files: filled once for the run, and back to that for each test. Open connections inside the test."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_sandpoint import CheckpointFactory


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("database")
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE orders (item TEXT)")
        connection.executemany("INSERT INTO orders VALUES (?)", [("tea",), ("milk",)])
    connection.close()
    return folder


@pytest.fixture
def shop(filled: Path, sandbox_checkpoint: CheckpointFactory) -> Iterator[sqlite3.Connection]:
    sandbox_checkpoint(filled)
    connection = sqlite3.connect(filled / "shop.db")
    yield connection
    connection.close()


@pytest.mark.parametrize("item", ["tea", "milk", "bread"])
def test_each_order_is_the_third(shop: sqlite3.Connection, item: str) -> None:
    with shop:
        shop.execute("INSERT INTO orders VALUES (?)", (item,))
    assert shop.execute("SELECT count(*) FROM orders").fetchone() == (3,)
