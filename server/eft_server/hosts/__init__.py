"""Hosts other than `eft serve`: plain vLLM, and Ray Serve."""
