"""What people do with checkpoints: list, verify, diff, compact, export."""
