"""Writing a batch: one transaction, from the fast way to the careful one."""
