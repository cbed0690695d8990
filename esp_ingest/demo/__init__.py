"""Demo: a simulated fleet, and broker and database embedded in pip packages."""
