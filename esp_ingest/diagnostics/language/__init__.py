"""The language of rules.toml: units, functions, conditions, rules."""
