"""Preference pairs from JSONL files, and an engine or a server to score them: `eft dynamics` and `eft probe`."""

from eft_client.pairs.engine import opened
from eft_client.pairs.errors import PairsError
from eft_client.pairs.pair import Message, Pair, read_pairs

__all__ = ["Message", "Pair", "PairsError", "opened", "read_pairs"]
