"""Where event logs come from: one file a source, one protocol (base.py)."""
