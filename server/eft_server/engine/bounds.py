"""Limits on the data of one request: Model Runner V2 (GPUs) keeps it in rows of fixed width.

A larger request would end that runner for all requests. The limits hold for both runners.
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
"""A request's stop tokens; the other half of the row is for the tokens that end the family's texts."""

END_IDS: Final = MAX_NUM_STOP_TOKEN_IDS - STOP_TOKEN_IDS - 1
"""A family's end tokens; the tokenizer may add one more."""

BAD_WORDS: Final = envs.VLLM_MAX_NUM_BAD_WORDS // 2
"""Each is stored twice, with its tokens at the beginning of a text and in the middle."""

BAD_WORD_TOKENS: Final = envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS
"""Tokens of all bad words together, in both forms."""
