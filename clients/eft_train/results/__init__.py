"""What a training leaves to be read: family files, curves, a warning, a card."""
