"""What a pipeline consists of: its stages, what runs them on one node or many, and how they are known to be done."""
