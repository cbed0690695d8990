"""What the routes read from the database: the fleet, the telemetry of a well, its pump, and the live stream."""
