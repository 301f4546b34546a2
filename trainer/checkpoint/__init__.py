"""Sparse checkpoints written while training goes on; their layout and reading stand in `serving.checkpoints`."""
