"""The demo family: a miniature world, the recipe that trains models on it, and their evaluation."""
