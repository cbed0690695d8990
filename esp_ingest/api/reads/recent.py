"""Charts of the last moments, shared by all who look at the same one.

Everybody's fleet page shows the same wells first, each with its line of the last day. Such a line is made of buckets,
and it hardly moves while a bucket is filled, so it is read once for a twentieth of a bucket and not once for each
browser."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

from esp_ingest.api.reads.telemetry import Page
from esp_ingest.interfaces import Clock

_LONGEST_SECONDS = 60.0
_VALUES_OF_AN_EMPTY_PAGE = 20  # what a page takes without its rows, as if it were values
_SHARE_OF_A_ROW = 0.1  # of the time that a row stands for; a bucket has two


class RecentPages:
    """Pages whose range ends now, by what was asked. To be used in the event loop. Of values (rows × columns)
    and pages at most ``most_values`` are kept; 200 000 take some 15 MB."""

    def __init__(self, clock: Clock, most_values: int = 200_000) -> None:
        self._clock = clock
        self._most_values = most_values
        self._kept: OrderedDict[Hashable, tuple[float, Page]] = OrderedDict()  # with the time until it may be shown
        self._values = 0

    async def page(self, key: Hashable, seconds: float, max_points: int, read: Callable[[], Awaitable[Page]]) -> Page:
        """What ``read`` gives, or gave not long ago. ``key`` is all that was asked, for a range of ``seconds`` up to
        now in ``max_points`` rows. Readings as stored are always read anew. Raises what ``read`` raises."""
        now = self._clock.monotonic()
        until, kept = self._kept.get(key, (now, None))
        if kept is not None and now < until:
            return kept
        page = await read()
        if page.resolution != "raw":
            self._keep(key, now + min(seconds / max_points * _SHARE_OF_A_ROW, _LONGEST_SECONDS), page)
        return page

    def _keep(self, key: Hashable, until: float, page: Page) -> None:
        self._forget(key)
        self._kept[key] = (until, page)
        self._values += _size(page)
        while self._values > self._most_values:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: Hashable) -> None:
        _, page = self._kept.pop(key, (0.0, None))
        if page is not None:
            self._values -= _size(page)


def _size(page: Page) -> int:
    """In values. A page without rows takes room too: whoever asks for a signal that a well never sends gets one."""
    return _VALUES_OF_AN_EMPTY_PAGE + len(page.rows) * len(page.columns)
