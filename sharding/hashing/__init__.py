"""A table whose rows change owners."""
