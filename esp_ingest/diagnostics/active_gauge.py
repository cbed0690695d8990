"""The gauge of open occurrences, ``esp_ingest_diagnostics_active``.

It counts what the engine holds open, and what the table holds open at wells that the engine does not hold, because they
have not sent since the start or gave up their place."""

from collections import Counter
from collections.abc import Collection, Iterable

from esp_ingest.diagnostics.engine.engine import Engine
from esp_ingest.diagnostics.language.rules import RuleSet
from esp_ingest.interfaces import DiagnosticsStore
from esp_ingest.service.metrics import Metrics

_MOST_OPEN = 100_000  # rows of the table


class ActiveGauge:
    """For the thread that drives the engine."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._series: set[tuple[str, str]] = set()  # (diagnosis, severity) with a gauge
        self._elsewhere: dict[str, list[tuple[str, str]]] = {}  # by well that the engine does not hold
        self.is_complete = False  # every well with something open is held by the engine

    def expect(self, rules: RuleSet) -> None:
        """The series that ``rules`` can have, so that each is there from the start."""
        for rule in rules.rules:
            grades = {rule.severity}
            grades |= {each.severity for each in (rule.escalation, rule.upgrade) if each is not None}
            grades |= {rule.stale.escalate_severity} if rule.stale is not None else set()
            for severity in grades:
                self._metrics.diagnostics_raised.labels(diagnosis=rule.name, severity=severity.value)
                self._series.add((rule.name, severity.value))

    def look_elsewhere(self, store: DiagnosticsStore, held: Collection[str]) -> None:
        """Ask the table what is open at wells that are not ``held``. Raises StoreUnavailable."""
        if self.is_complete:
            return
        self._elsewhere = {}
        for well, diagnosis, severity in store.open_anywhere(_MOST_OPEN):
            if well not in held:
                self._elsewhere.setdefault(well, []).append((diagnosis, severity))

    def held(self, wells: Iterable[str]) -> None:
        """The engine holds these wells now, and counts what is open there itself."""
        for well in wells:
            self._elsewhere.pop(well, None)

    def gathered(self) -> None:
        """Every well that has a state is held: once nothing is open elsewhere, the table is not asked again."""
        self.is_complete = not self._elsewhere

    def show(self, engine: Engine) -> None:
        """Set every series, and tell ``engine`` what it is to add when a batch changes one."""
        elsewhere = Counter(key for keys in self._elsewhere.values() for key in keys)
        counts = Counter((each.diagnosis, each.severity.value) for each in engine.open_occurrences()) + elsewhere
        engine.elsewhere = elsewhere
        self._series.update(counts)
        for diagnosis, severity in self._series:
            gauge = self._metrics.diagnostics_active.labels(diagnosis=diagnosis, severity=severity)
            gauge.set(counts[diagnosis, severity])
