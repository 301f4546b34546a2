"""Event logs made by rule: no download, any size, and a process that is known."""
