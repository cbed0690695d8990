"""Settings: what there is to set, where it is read from, and errors that say what to do."""
