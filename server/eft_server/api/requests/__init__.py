"""The fields of requests: each is supported, or refused by name."""
