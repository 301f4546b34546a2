"""Slow categorical series: a user's states that seldom change, read, compressed, stored and merged into histories."""
