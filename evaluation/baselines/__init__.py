"""Classical recommenders, fitted on the training part of a store: what a model must beat, by the same protocol."""
