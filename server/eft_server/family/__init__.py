"""From a family file to a resolved family. No torch, no vLLM."""
