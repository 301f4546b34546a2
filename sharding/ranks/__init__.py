"""What ranks tell of themselves while they work: logs, heartbeats, and which of them holds the others up."""
