"""The neighbours' way: each token, every model in turn through transformers, with KV caches; the yardstick."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eft_server.bench.contestants import Job


class TransformersLoop:
    """Greedy decoding of one batch of prompts of equal length, float32, one global weight vector."""

    def __init__(self, models: Sequence[str], coefficients: Sequence[float]) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._models: list[Any] = [
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval() for model in models
        ]
        self._coefficients = coefficients

    def generate(self, job: "Job") -> None:
        """Run a job to its end."""
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            tokens = torch.tensor([list(prompt) for prompt in job.prompts])
            caches = [DynamicCache() for _ in self._models]
            for _ in range(job.tokens):
                tokens = self._step(tokens, caches).argmax(dim=-1, keepdim=True)

    def _step(self, tokens: Any, caches: Sequence[Any]) -> Any:
        total: Any = 0
        for model, cache, coefficient in zip(self._models, caches, self._coefficients, strict=True):
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            total = total + coefficient * logits[:, -1]
        return total
