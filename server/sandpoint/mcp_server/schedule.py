"""Pruning beside the serving."""

import logging

import anyio

from sandpoint.errors import SandpointError
from sandpoint.models import KeepRules
from sandpoint.services import ServiceSource

logger = logging.getLogger(__name__)


async def prune_regularly(services: ServiceSource, rules: KeepRules, *, every_s: float) -> None:
    """Prune now and at an interval, until cancelled; what fails is logged, and tried again the next time.

    The first is at once: a server may end with its client's session, long before the interval has passed.
    """
    while True:
        try:
            async with services.use_store() as service:
                result = await service.prune(**dict(rules))
        except SandpointError as error:
            logger.warning("scheduled prune: %s: %s", error.code, error)
        except Exception:
            logger.exception("scheduled prune failed unexpectedly")
        else:
            logger.info("scheduled prune: %d backups removed, %d bytes freed", len(result.removed), result.freed_bytes)
        await anyio.sleep(every_s)
