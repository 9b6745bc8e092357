"""The baseline: for each token, all models in turn in transformers, with KV caches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eft_server.bench.targets import Drafts, Job


class TransformersLoop:
    """Greedy decoding of one batch of prompts of equal length, with one weight vector; on the GPU if there is one.

    Args:
        models: The members' checkpoints.
        coefficients: One for each.
        dtype: The models' dtype, by its name in torch; "auto" for each checkpoint's.
        weightless: The checkpoints are only configs: use random weights.
    """

    def __init__(
        self, models: Sequence[str], coefficients: Sequence[float], dtype: str, weightless: bool
    ) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        chosen: Any = dtype if dtype == "auto" else getattr(torch, dtype)
        if weightless:
            configs = [AutoConfig.from_pretrained(model) for model in models]
            with torch.device(self._device):
                loaded = [AutoModelForCausalLM.from_config(config, dtype=chosen) for config in configs]
        else:
            loaded = [AutoModelForCausalLM.from_pretrained(model, dtype=chosen) for model in models]
        self._models: list[Any] = [model.to(self._device).eval() for model in loaded]
        self._coefficients = coefficients

    def generate(self, job: "Job") -> None:
        """Run a job to its end."""
        import torch
        from transformers import DynamicCache

        with torch.inference_mode():
            tokens = torch.tensor([list(prompt) for prompt in job.prompts], device=self._device)
            caches = [DynamicCache() for _ in self._models]
            for _ in range(job.tokens):
                tokens = self._step(tokens, caches).argmax(dim=-1, keepdim=True)
            tokens.cpu()  # Waits for the device.

    def drafts(self) -> "Drafts":
        """There are none."""
        from eft_server.bench.targets import Drafts

        return Drafts()

    def _step(self, tokens: Any, caches: Sequence[Any]) -> Any:
        total: Any = 0
        for model, cache, coefficient in zip(self._models, caches, self._coefficients, strict=True):
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            total = total + coefficient * logits[:, -1].float()
        return total
