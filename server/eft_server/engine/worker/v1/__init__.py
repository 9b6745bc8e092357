"""vLLM's Model Runner V1, which the CPU build uses."""
