"""Chains of deltas: how far a new backup is built on earlier ones. Pure: no store, no clock of its own."""

from dataclasses import dataclass
from datetime import datetime
from statistics import median
from uuid import UUID

from sandpoint.models import BackupMetadata

_ALIKE = 4
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class ChainLimits:
    """When a chain is not continued: layers in it, age of its full layer, and size of its deltas against that."""

    layers: int
    hours: float
    share: float


DEFAULT_LIMITS = ChainLimits(layers=16, hours=24.0, share=0.5)


def shorten(parent: BackupMetadata, limits: ChainLimits, now: datetime) -> BackupMetadata | None:
    """Return the part of a chain that a delta shall be built on; None where a full layer is due.

    A chain that has as many layers as it may loses its newest ones of about the same size: what they hold is written
    again, as one. So a change is written about twice, however many backups follow one another, and not with each.
    """
    if _age_hours(parent, now) > limits.hours:
        return None
    full, *deltas = [layer.size for layer in parent.layers]
    if sum(deltas) > max(full * limits.share, _SMALL_BYTES):
        return None
    if len(parent.layers) < limits.layers:
        return parent
    if not deltas:
        return None
    kept = len(parent.layers) - _alike(deltas)
    return parent.model_copy(
        update={
            "id": parent.manifests[kept - 1].key.split("/")[1],
            "manifest": parent.manifests[kept - 1],
            "parent_manifests": parent.manifests[: kept - 1],
            "layers": parent.layers[:kept],
        }
    )


def _alike(sizes: list[int]) -> int:
    """Return how many of the last deltas are about as small as most of them; two at least, where there are two."""
    usual = median(sizes)
    run = 0
    for size in reversed(sizes):
        if size > _ALIKE * usual:
            break
        run += 1
    return min(max(run, 2), len(sizes))


def _age_hours(parent: BackupMetadata, now: datetime) -> float:
    made = UUID(parent.layers[0].key.split("/")[1])
    if made.version != 7:
        return (now - parent.created_at).total_seconds() / 3600
    return (now.timestamp() - (made.int >> 80) / 1000) / 3600
