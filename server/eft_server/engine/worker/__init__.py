"""In the model's processes: the composite model, and what a runner needs for it."""
