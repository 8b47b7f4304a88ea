"""Where backups are kept."""

from sandpoint.errors import InvalidBackupConfigError
from sandpoint.stores.base import Store
from sandpoint.stores.local import LocalStore, open_local_store

__all__ = ["LocalStore", "Store", "open_store"]

_FACTORIES = (open_local_store,)


def open_store(url: str) -> Store:
    """Return the store of a URL; each kind of store takes the URLs of its own scheme.

    Raises:
        InvalidBackupConfigError: No kind of store takes it.
    """
    for factory in _FACTORIES:
        store = factory(url)
        if store is not None:
            return store
    raise InvalidBackupConfigError(
        f"store: {url!r} is no URL of a store; use file:///absolute/path (SANDPOINT_STORE or --store)"
    )
