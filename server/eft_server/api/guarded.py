"""An engine that is asked for nothing that a member cannot read, and for no token that cannot be generated."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from eft_server.api.errors import ApiError
from eft_server.engine.coefficients import counting, is_filtered
from eft_server.engine.manifest import Manifest
from eft_server.engine.message import EngineRequest
from eft_server.errors import shown

__all__ = ["Guarded"]


class Guarded:
    """Checks what is sent to the engine, whichever way it came; everything else is the engine's.

    vLLM lets a prompt hold every id that the tokenizer knows, and tokenizers know more than models: a token that was
    added and never trained has no row in the embedding.
    """

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine
        self._manifest = Manifest.from_hf(engine.model_config.hf_config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As the engine's.

        Raises:
            ApiError: A member that counts has no row for a token of its prompt, or none of the allowed tokens can be
                generated.
        """
        request = EngineRequest.read(sampling_params.extra_args, self._manifest)
        self._require_rows(request, prompt["prompt_token_ids"])
        self._require_choice(request, sampling_params.allowed_token_ids or ())
        return self._engine.generate(prompt, sampling_params, request_id, **options)

    def _require_rows(self, request: EngineRequest, everybodys: Sequence[int]) -> None:
        highest = max(everybodys, default=0)
        for place, (name, rows) in enumerate(zip(self._manifest.names, self._manifest.rows, strict=True)):
            if not request.needed[place]:
                continue
            own = request.prompts.tokens_M[place] if request.prompts is not None else None
            last = highest if own is None else int(own.max(initial=0))
            if last >= rows:
                known = self._engine.renderer.get_tokenizer().convert_ids_to_tokens([last])[0]
                token = f" ({shown(known)})" if known else ""
                message = (
                    f"the prompt holds the token {last}{token}, for which the member {name!r} has no row; "
                    f"allowed: 0 to {rows - 1}."
                )
                raise ApiError(message, code="invalid_value")

    def _require_choice(self, request: EngineRequest, allowed: Sequence[int]) -> None:
        mixture = request.mixture
        plain_base = mixture[0] == 1 and counting(mixture)[1:] == (False,) * (len(self._manifest.names) - 1)
        if not allowed or (plain_base and not is_filtered(mixture)):
            return
        if all(any(start <= i < stop for start, stop in self._manifest.unshared) for i in allowed):
            message = (
                "allowed_token_ids: none of these can be generated, since not all members share them; "
                "only the plain base can."
            )
            raise ApiError(message, param="allowed_token_ids", code="invalid_value")
