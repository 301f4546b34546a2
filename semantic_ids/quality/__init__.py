"""How good a code table is, in figures and pictures."""
