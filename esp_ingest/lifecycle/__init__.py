"""What happens to the data after it was stored: finished days are archived, the copy is verified, old days are dropped,
and archived days can be read back.

This package stands beside ingest, and the daemon never imports it. It needs the extra ``[archive]``."""
