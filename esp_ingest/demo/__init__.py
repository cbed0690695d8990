"""The demo: a simulated fleet, with a broker and a database that come as Python packages."""
