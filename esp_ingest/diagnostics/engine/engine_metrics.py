"""The part of service/metrics.py that the engine feeds."""

from typing import Any, Protocol


class EngineMetrics(Protocol):
    """The part of service.metrics that the engine feeds (prometheus objects, or a fake's)."""

    diagnostics_raised: Any
    diagnostics_active: Any
    diagnostics_late_readings: Any
    diagnostics_rule_failures: Any
    diagnostics_rules_disabled: Any
