"""MQTT: the client with bulk reads, and the source of deliveries built on it."""
