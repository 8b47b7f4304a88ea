"""The key that several servers of one state directory share, for what their clients keep between two calls."""

import logging
import os
import tempfile
from contextlib import suppress

KEY_BYTES = 32

KEY_NAME = "mcp.key"

logger = logging.getLogger(__name__)


def shared_key(state_dir: str) -> bytes | None:
    """Return the key in a state directory; the first who asks makes it, readable by this user alone.

    None where there can be none, which is logged: then each server has its own, and an answer must come back to the
    one that asked.
    """
    path = os.path.join(state_dir, KEY_NAME)
    try:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        descriptor, made = tempfile.mkstemp(prefix=KEY_NAME, dir=state_dir)
        try:
            with open(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(made, path)
        finally:
            os.unlink(made)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            key = file.read()
    except OSError as error:
        logger.warning("this server has a key of its own, for %s cannot be used: %s", path, error.strerror)
        return None
    if len(key) != KEY_BYTES:
        logger.warning("this server has a key of its own, for %s has %d bytes; remove it", path, len(key))
        return None
    return key
