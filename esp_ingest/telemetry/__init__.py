"""Telemetry: signals, units and limits, and the decoding of payloads."""
