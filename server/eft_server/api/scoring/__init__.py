"""Given completions: their scores, and explanations of them token by token."""
