"""Training data that the repository makes itself, so that an expert can be trained without a network."""
