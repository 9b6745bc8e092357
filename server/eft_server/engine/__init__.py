"""The composite model inside vLLM: the only package that touches vLLM's internals."""
