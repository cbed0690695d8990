"""What the diagnostics keep and read in the database, on connections of their own."""
