"""vLLM's Model Runner V2, which GPUs use, and its kernels."""
