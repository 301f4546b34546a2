"""Item vectors in, one code table out: every item gets C codes of 0 … V-1."""
