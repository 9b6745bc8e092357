"""`eft dynamics`: how fine-tuning moved probability, checkpoint by checkpoint and along a weight."""
