"""How much of one request the engine has room for: Model Runner V2 (GPUs) keeps it in rows of fixed width.

A request that brings more ends that runner, for everybody. Both runners are sent the same.
"""

from typing import Final

from vllm import envs
from vllm.sampling_params import MAX_LOGPROB_TOKEN_IDS
from vllm.v1.worker.gpu.sample.logit_bias import (
    MAX_NUM_ALLOWED_TOKEN_IDS,
    MAX_NUM_LOGIT_BIAS_TOKENS,
    MAX_NUM_STOP_TOKEN_IDS,
)

ALLOWED_TOKEN_IDS: Final = MAX_NUM_ALLOWED_TOKEN_IDS
LOGIT_BIASES: Final = MAX_NUM_LOGIT_BIAS_TOKENS
LOGPROB_TOKEN_IDS: Final = MAX_LOGPROB_TOKEN_IDS

STOP_TOKEN_IDS: Final = MAX_NUM_STOP_TOKEN_IDS // 2
"""A request's own; the other half of the row is for the tokens that end a text of the family's."""

END_IDS: Final = MAX_NUM_STOP_TOKEN_IDS - STOP_TOKEN_IDS - 1
"""A family's; the tokenizer may name one more."""

BAD_WORDS: Final = envs.VLLM_MAX_NUM_BAD_WORDS // 2
"""Each is kept twice, as it is written at the beginning of a text and in its middle."""

BAD_WORD_TOKENS: Final = envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS
"""Of all bad words together, in both ways of writing them."""
