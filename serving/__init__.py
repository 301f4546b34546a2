"""A trained model answers: engines that turn user vectors into ranked items."""
