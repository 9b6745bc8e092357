"""From nothing to the family's checkpoints, step by step; a step whose checkpoint exists can be skipped."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from eft_demo.corpus import read_corpus
from eft_demo.manners import MANNERS, write_lessons
from eft_demo.recipe import Recipe, new_model
from eft_demo.tokenizer import train_tokenizer
from eft_demo.training.pretraining import pack, pretrain
from eft_demo.training.schedule import Progress
from eft_demo.world import World, build_world

TOKENIZER_DOCUMENTS = 20_000
#: What ships; the large fine-tunes are only the truth that the emulation is held against.
SHIPPED = ("large-base", "small-base", "small-helpful", "small-harmless")
MODELS = tuple(f"{scale}-{role}" for scale in ("large", "small") for role in ("base", *MANNERS))

#: Called with a step's name and its number of training steps; gives the callback for its progress.
Report = Callable[[str, int], Progress]


class Workshop:
    """A folder of checkpoints in the making, and the recipe and world that they are made from."""

    def __init__(self, folder: Path, recipe: Recipe, report: Report, device: str = "cpu") -> None:
        self.folder, self.recipe = folder, recipe
        self.world: World = build_world(recipe.seed, subjects_per_kind=recipe.subjects_per_kind)
        self._report, self._device = report, device

    def build(self, scale: str) -> None:
        """Train one scale's base and experts, those that the folder does not hold yet."""
        tokenizer = self.tokenizer()
        self._build_base(scale, tokenizer)
        for manner in MANNERS:
            self._build_expert(scale, manner, tokenizer)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The family's tokenizer, trained on first use."""
        path = self.folder / "tokenizer"
        if not path.exists():
            documents = islice(read_corpus(self.world, self.recipe.seed), TOKENIZER_DOCUMENTS)
            trained = train_tokenizer(documents, size=self.recipe.vocabulary, context=self.recipe.positions)
            trained.save_pretrained(path)
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(path)
        return tokenizer

    def load(self, name: str) -> LlamaForCausalLM:
        """A finished checkpoint, as rounded for shipping, in float32."""
        model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
            self.folder / name, dtype=torch.float32
        )
        return model.to(self._device).eval()

    def ship(self, target: Path) -> None:
        """Copy the members that are served to ``target``."""
        for name in SHIPPED:
            shutil.copytree(
                self.folder / name, target / name, copy_function=shutil.copyfile, dirs_exist_ok=True
            )

    def _build_base(self, scale: str, tokenizer: PreTrainedTokenizerFast) -> None:
        """Pre-train a scale's base, unless it is there."""
        name, schedule = f"{scale}-base", self.recipe.pretraining
        if (self.folder / name).exists():
            return
        torch.manual_seed(self.recipe.seed)
        model = new_model(scale, tokenizer).to(self._device)
        rows = pack(read_corpus(self.world, self.recipe.seed + 1), tokenizer, self.recipe.row_tokens)
        progress = self._report(name, schedule.steps)
        pretrain(model, rows, schedule, progress=progress)
        self._save(model, name, tokenizer)

    def _build_expert(self, scale: str, manner: str, tokenizer: PreTrainedTokenizerFast) -> None:
        """Fine-tune a scale's base, as shipped, in one manner, unless that is there."""
        name, schedule = f"{scale}-{manner}", self.recipe.fine_tuning
        if (self.folder / name).exists():
            return
        from eft_demo.training.fine_tuning import fine_tune

        lessons = write_lessons(self.world, manner, self.recipe.seed)
        progress = self._report(name, schedule.steps)
        expert = fine_tune(self.load(f"{scale}-base"), lessons, tokenizer, schedule, progress=progress)
        self._save(expert, name, tokenizer)

    def _save(self, model: LlamaForCausalLM, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
        """Write a complete checkpoint in bfloat16, whole or not at all."""
        unfinished = self.folder / f".{name}"
        model.to(torch.bfloat16).save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.replace(self.folder / name)
