"""What every room needs and no room owns: configuration, faults, files, progress, seeds."""
