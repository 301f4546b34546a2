"""Event logs in, jagged batches out."""
