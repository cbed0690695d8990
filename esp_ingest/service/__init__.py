"""Service: clock, logs, metrics, health and the HTTP port."""
