"""Whether the backup can be restored: pgBackRest, a copy that is started, its comparison with the archive."""
