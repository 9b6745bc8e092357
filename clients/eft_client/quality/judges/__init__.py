"""Judges: how good an answer is, by rules, by another model, or by the experts' own implicit reward."""
