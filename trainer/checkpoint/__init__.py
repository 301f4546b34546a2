"""Writing checkpoints; their layout and reading stand in `serving.checkpoints`."""
