"""The way of a batch: collected, written, acknowledged."""
