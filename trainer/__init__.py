"""Training: the entry point, the loop, optimizers, checkpoints and telemetry."""
