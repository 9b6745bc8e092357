"""Code for the model's processes: the composite model, and its support in the model runners."""
