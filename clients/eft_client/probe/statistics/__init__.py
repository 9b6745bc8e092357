"""Probes and what is said of them: cross-validation by prompt, measures, intervals."""
