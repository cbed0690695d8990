"""The rule engine: columns of a batch in, changes of occurrences out."""
