"""The texts whose probability is followed, and how they are made."""
