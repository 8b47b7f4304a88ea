import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandpoint.mcp_server.sealing import KEY_BYTES, KEY_NAME, shared_key


def test_all_servers_of_a_state_directory_have_one_key(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    with ThreadPoolExecutor(8) as threads:
        keys = {*threads.map(lambda _: shared_key(state), range(32))}
    assert len(keys) == 1
    assert [len(key or b"") for key in keys] == [KEY_BYTES]
    assert [path.name for path in (tmp_path / "state").iterdir()] == [KEY_NAME]


def test_only_this_user_can_read_it(tmp_path: Path) -> None:
    shared_key(str(tmp_path))
    assert stat.S_IMODE((tmp_path / KEY_NAME).stat().st_mode) == 0o600


def test_where_there_can_be_none_a_server_has_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert shared_key(str(tmp_path / "file" / "state")) is None
    (tmp_path / KEY_NAME).write_bytes(b"short")
    assert shared_key(str(tmp_path)) is None
    (tmp_path / KEY_NAME).unlink()
    (tmp_path / KEY_NAME).symlink_to("/etc/hostname")
    assert shared_key(str(tmp_path)) is None
    assert len(caplog.messages) == 3
