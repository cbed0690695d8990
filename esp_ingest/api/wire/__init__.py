"""What goes over the wire: shapes of answers, errors, pages, ranges of time and units."""
