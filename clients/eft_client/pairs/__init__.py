"""Preference pairs from JSONL files, and an engine or a server to score them: `eft dynamics` and `eft probe`."""
