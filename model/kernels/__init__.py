"""Kernels of our own for the CPU: attention, losses, what lies between. See `build`."""
