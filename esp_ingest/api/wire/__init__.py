"""What is sent over HTTP: shapes of answers and bodies, errors, pages, ranges of time and units."""
