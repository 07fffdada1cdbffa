"""Whether each part that the service needs does its work now. For `/health` and the admin page.

Whoever asks costs nothing: one look is shared by all who ask within a few seconds, and none takes longer than its
limit. Why a part fails goes to the log and to the Hub's admins; `/health` names the part only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from hub_service.domain.errors import FederationError

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[None]]
"""Returns where the part does its work. Raises FederationError or OSError where it does not, with the reason."""

AGE_S = 3.0  # how old an answer may be
LIMIT_S = 5.0  # after which a part counts as failed: the Hub and monitors give up later


@dataclass(frozen=True, slots=True)
class Part:
    """How one part was found. `reason` is for the log and for admins; "" where it does its work."""

    name: str
    reason: str = ""

    @property
    def works(self) -> bool:
        return not self.reason


class Readiness:
    """Looks at every part when somebody asks.

    Args:
        checks: by name of the part.
        age_s, limit_s: see AGE_S and LIMIT_S.
    """

    def __init__(self, checks: Mapping[str, Check], *, age_s: float = AGE_S, limit_s: float = LIMIT_S) -> None:
        self._checks = checks
        self._age_s = age_s
        self._limit_s = limit_s
        self._found: tuple[Part, ...] = ()
        self._found_at: float | None = None
        self._looking = asyncio.Lock()

    async def parts(self) -> tuple[Part, ...]:
        """Every part, in the order of the checks."""
        async with self._looking:
            if self._found_at is None or time.monotonic() - self._found_at >= self._age_s:
                before = {part.name: part.reason for part in self._found}
                self._found = tuple(await asyncio.gather(*map(self._look, self._checks)))
                self._found_at = time.monotonic()
                self._log_changes(before)
            return self._found

    async def _look(self, name: str) -> Part:
        try:
            async with asyncio.timeout(self._limit_s):
                await self._checks[name]()
        except TimeoutError:
            return Part(name, f"no answer within {self._limit_s:g} s")
        except FederationError as error:
            return Part(name, error.debug or error.message)
        except OSError as error:
            return Part(name, str(error.strerror or error))
        return Part(name)

    def _log_changes(self, before: Mapping[str, str]) -> None:
        for part in self._found:
            if part.reason and part.reason != before.get(part.name):
                log.error("%s fails: %s", part.name, part.reason)
            elif part.works and before.get(part.name):
                log.info("%s works again", part.name)
