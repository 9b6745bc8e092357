"""The HTTP side: OpenAI's endpoints over vLLM's own serving handlers, with behaviour weights per request."""
