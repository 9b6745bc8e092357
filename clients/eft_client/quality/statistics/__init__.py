"""From a study's scores to estimates, comparisons and choices."""
