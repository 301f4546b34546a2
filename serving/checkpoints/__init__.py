"""Checkpoints: their layout, which of them are whole, and a trained model read back from one. docs/checkpoints.md."""
