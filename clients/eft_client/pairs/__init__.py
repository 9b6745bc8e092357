"""Preference pairs from JSONL files, and an engine or a server to score them: `eft dynamics` and `eft probe`."""

from eft_client.pairs.engine import opened
from eft_client.pairs.errors import PairsError
from eft_client.pairs.pair import Message, Pair, as_line, read_pairs

__all__ = ["Message", "Pair", "PairsError", "as_line", "opened", "read_pairs"]
