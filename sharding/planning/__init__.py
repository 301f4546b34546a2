"""What may be done, for which cluster, for which step → a placement, and all that follows from it."""
