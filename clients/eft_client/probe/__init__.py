"""`eft probe`: whether an expert's activations carry the feedback that it was trained on."""
