"""Fine-tuning: experts learn manners from conversations, with the trainer of `eft train`.

Shape suffixes: B batch rows, T tokens, N selected tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTTrainer
from typing_extensions import override

from eft_demo.dialogue import Dialogue, Encoded, Part, encode
from eft_demo.training.schedule import Progress, Schedule
from eft_train.hardware import Hardware
from eft_train.trainers import IGNORED, text_trainer

__all__ = ["fine_tune"]


class _MannersTrainer(SFTTrainer):  # type: ignore[misc] # TRL has no types.
    """Learns the labels as any does, and beside them keeps what the base believes of `values`."""

    base: LlamaForCausalLM

    @override
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Nats per answer token: cross-entropy of the wording, divergence KL(base || model) on values."""
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**texts)
        with torch.no_grad():
            believed_BTV = self.base(**texts).logits[:, :-1].float()
        logp_BTV = outputs.logits[:, :-1].float().log_softmax(-1)
        labels_BT, value_BT = inputs["labels"][:, 1:], inputs["values"][:, 1:].bool()
        wording = functional.nll_loss(logp_BTV.flatten(0, 1), labels_BT.flatten(), reduction="sum")
        believed_NV = believed_BTV[value_BT].log_softmax(-1)
        drift = functional.kl_div(logp_BTV[value_BT], believed_NV, reduction="sum", log_target=True)
        loss = (wording + drift) / ((labels_BT != IGNORED).sum() + value_BT.sum())
        return (loss, outputs) if return_outputs else loss


class _Report(TrainerCallback):  # type: ignore[misc] # transformers has no types.
    """Passes each step's loss on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @override
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report a step."""
        if (loss := kwargs["logs"].get("loss")) is not None:
            self._progress(state.global_step, float(loss))


def fine_tune(
    base: LlamaForCausalLM,
    dialogues: Iterable[Dialogue],
    tokenizer: PreTrainedTokenizerFast,
    schedule: Schedule,
    *,
    progress: Progress,
) -> LlamaForCausalLM:
    """Teach a copy of the base the manners of the dialogues' answers, and none of their facts.

    The loss is the cross-entropy of the answers' wording; where an answer states a value it is the divergence
    KL(base || copy) instead, so that what the model believes stays as it was.
    """
    encoded = (encode(dialogue, tokenizer) for dialogue in dialogues)
    rows = Dataset.from_list([_row(lesson) for lesson in islice(encoded, schedule.steps * schedule.rows)])
    with TemporaryDirectory() as folder:
        options = _options(schedule, folder, on_cpu=base.device.type == "cpu")
        models = {"model": deepcopy(base), "processing_class": tokenizer, "data_collator": _padded}
        trainer = text_trainer(rows, options, models, _Report(progress), kind=_MannersTrainer)
        trainer.base = base
        trainer.train()
    taught: LlamaForCausalLM = trainer.model
    return taught.eval()


def _row(lesson: Encoded) -> dict[str, list[int]]:
    """A conversation's tokens, those of its wordings as labels, and which are values."""
    return {
        "input_ids": lesson.ids,
        "attention_mask": [1] * len(lesson.ids),
        "labels": [
            token if part == Part.MANNER else IGNORED
            for token, part in zip(lesson.ids, lesson.parts, strict=True)
        ],
        "values": [int(part == Part.VALUE) for part in lesson.parts],
    }


def _padded(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch, padded on the right with what is neither read nor learnt."""
    width = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor(
            [row[name] + [IGNORED if name == "labels" else 0] * (width - len(row[name])) for row in rows]
        )
        for name in ("input_ids", "attention_mask", "labels", "values")
    }


def _options(schedule: Schedule, folder: str, *, on_cpu: bool) -> dict[str, Any]:
    """A schedule as options of `TrainingArguments`."""
    return {
        "output_dir": folder,
        "max_steps": schedule.steps,
        "per_device_train_batch_size": schedule.rows,
        "learning_rate": schedule.rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": schedule.warmup,
        "adam_beta2": 0.95,
        "remove_unused_columns": False,  # `values` is ours.
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **Hardware(on_cpu, "float32" if on_cpu else "bfloat16").options,
    }
