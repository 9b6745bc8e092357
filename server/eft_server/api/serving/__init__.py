"""From a checked request to its answer, through vLLM's handlers."""
