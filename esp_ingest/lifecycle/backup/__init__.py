"""Drills of the backup: restore it with pgBackRest, start the copy, and compare it with the archive."""
