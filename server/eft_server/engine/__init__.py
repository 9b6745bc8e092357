"""The composite model inside vLLM: the only place that touches vLLM's internals."""
