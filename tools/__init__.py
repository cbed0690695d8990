"""Tools of a checkout that are not shipped: generators of what is made from code."""
