"""A `cpu` backend for Triton that is never asked to compile: enough for vLLM to use the interpreter."""
