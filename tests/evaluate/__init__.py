"""Are the diagnoses right? Recorded wells, simulated faults, a fleet in health: ``python -m tests.evaluate``."""
