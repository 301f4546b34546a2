"""Jobs for TorchX; knows the rooms by name only."""
