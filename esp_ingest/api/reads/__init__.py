"""What the routes read: the fleet, the telemetry of a well, its pump, and the live stream."""
