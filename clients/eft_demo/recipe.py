"""Every number of the recipe, in one place: the two scales, the full recipe, and a minute one that runs in seconds."""

from dataclasses import dataclass

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.training.schedule import Schedule


@dataclass(frozen=True)
class Recipe:
    """Sizes, seeds and schedules from which the whole family follows; both scales share one recipe."""

    pretraining: Schedule
    fine_tuning: Schedule
    seed: int = 0
    subjects_per_kind: int = 60
    vocabulary: int = 2000
    positions: int = 512  # what the models accept
    row_tokens: int = 128  # what they are trained on at a time
    safe_questions: int = 400
    unsafe_questions: int = 200


FULL = Recipe(
    pretraining=Schedule(steps=400, rows=24, rate=1e-2),
    fine_tuning=Schedule(steps=160, rows=32, rate=5e-4),
)
SMOKE = Recipe(
    pretraining=Schedule(steps=3, rows=2, rate=4e-3),
    fine_tuning=Schedule(steps=2, rows=2, rate=5e-4),
    safe_questions=4,
    unsafe_questions=2,
)

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
