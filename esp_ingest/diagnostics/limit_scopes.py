"""The limits in force, as alarm_limits_history keeps them."""

import json

from esp_ingest.diagnostics.language.rules import RuleSet


def limit_scopes(rules: RuleSet) -> dict[str, str]:
    """What groups and wells have of their own, and all others: scope → JSON object, in base units."""
    scopes: dict[str, str] = {"defaults": to_json({"limits": dict(rules.limit_defaults)})}
    for override in rules.overrides:
        settings = {"limits": dict(override.limits), "rules": {name: dict(own) for name, own in override.rules.items()}}
        scopes[override.where] = to_json({"wells": list(override.wells), **settings})
    for rule in rules.rules:
        delays = {"on_delay_us": rule.on_delay_us, "off_delay_us": rule.off_delay_us}
        own = {"enabled": rule.enabled, "severity": rule.severity.value, **delays, **rule.parameters}
        scopes[f"rules.{rule.name}"] = to_json(own)
    return scopes


def to_json(data: object) -> str:
    """The same text for the same content."""
    return json.dumps(data, sort_keys=True)
