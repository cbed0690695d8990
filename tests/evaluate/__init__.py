"""Are the diagnoses right? Recorded wells, simulated faults and a year of health, judged: ``python -m tests.evaluate``."""
