"""Where backups are kept."""

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.settings import Settings, read_settings
from sandpoint.stores.base import Store, without_login
from sandpoint.stores.local import LocalStore, open_local_store

__all__ = ["LocalStore", "Store", "open_store"]


def _open_s3_store(url: str, settings: Settings) -> Store | None:
    if not url.lower().startswith("s3:"):
        return None
    from sandpoint.stores.s3_settings import open_s3_store  # most runs need none of it

    return open_s3_store(url, settings)


_FACTORIES = (open_local_store, _open_s3_store)


def open_store(url: str, settings: Settings | None = None) -> Store:
    """Return the store of a URL; each kind of store takes the URLs of its own scheme.

    Args:
        url: Where it is.
        settings: How to reach it, by default those of the environment.

    Raises:
        InvalidBackupConfigError: No kind of store takes it, or it cannot be reached by these settings.
    """
    settings = settings or read_settings()
    for factory in _FACTORIES:
        store = factory(url, settings)
        if store is not None:
            return store
    raise InvalidBackupConfigError(
        f"store: {without_login(url)!r} is no URL of a store; use file:///absolute/path or s3://bucket/prefix "
        "(SANDPOINT_STORE or --store)"
    )
