"""The two scales of the demo family."""

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

#: Width, layers, inner width and attention heads of each scale; heads are 32 or 64 wide, as engines' kernels want.
SCALES = {"small": (96, 4, 256, 3), "large": (256, 6, 704, 4)}


def new_model(scale: str, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of one scale; draws its weights from torch's global generator."""
    width, layers, inner, heads = SCALES[scale]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
