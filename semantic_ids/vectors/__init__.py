"""Where item vectors come from, read a block at a time."""
