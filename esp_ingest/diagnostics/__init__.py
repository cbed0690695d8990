"""Diagnostics: rules over columns, and the life of an alarm."""
