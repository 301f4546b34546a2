"""New items, drift, and a refit that keeps labels."""
