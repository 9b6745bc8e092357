"""Diversity, against cases worked out by hand and against slow, plain computation."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from eft_client.quality.diversity.ead import ORDERS, ead, ead_of_counts, ead_values, words
from eft_client.quality.diversity.embeddings import Embedder, cosine_diversity, cosine_values
from eft_client.quality.diversity.measures import load_measure
from eft_client.quality.diversity.nli import CrossEncoder, draw_pairs, nli_diversity, nli_values
from eft_client.quality.diversity.sets import jackknife_values, pair_values
from eft_client.quality.errors import StudyError

TEXTS = ["a b a.", "b c", "a b c d e f", "x"]


def test_ead_by_hand() -> None:
    # Unigrams a b a b c: 3 different of 5. Of V = 10 equally likely ones, 5 draws give 10 · (1 − 0.9⁵) = 4.0951.
    assert ead(["a b a", "b c"], vocabulary=10, orders=(1,)) == pytest.approx(3 / 4.0951)
    # Bigrams ab ba | bc: 3 of 3, and none spans the two texts.
    assert ead(["a b a", "b c"], vocabulary=10, orders=(2,)) == pytest.approx(3 / (10 * (1 - 0.9**3)))
    # The mean over n; there is no 3-gram in the second, one in the first, and no 4-gram: 0.
    both = ead(["a b a", "b c"], vocabulary=10, orders=(1, 2, 3, 4))
    assert both == pytest.approx((3 / 4.0951 + 3 / 2.71 + 1 / 1 + 0) / 4)


def test_ead_is_not_smaller_for_longer_texts_of_the_same_source() -> None:
    rng = np.random.default_rng(0)
    short, long = (" ".join(map(str, rng.integers(0, 50, size))) for size in (100, 2000))
    found = [ead([text], vocabulary=50, orders=(1,)) for text in (short, long)]
    assert found == pytest.approx([1.0, 1.0], abs=0.1)
    assert len(set(long.split())) / 2000 < 0.05 < len(set(short.split())) / 100


def test_the_words_of_ead_have_no_full_stops() -> None:
    assert words(" The cat.\nsat  ") == ["The", "cat", "sat"]


def test_ead_of_a_large_vocabulary_is_exact() -> None:
    # V · (1 − (1 − 1/V)^C) → C for V ≫ C, without cancellation.
    assert ead_of_counts(3, 5, 10**12) == pytest.approx(3 / 5, rel=1e-9)
    assert ead_of_counts(0, 0, 100) == 0.0
    assert ead([], vocabulary=10) == 0.0


def test_the_values_of_ead_are_the_jackknife_s() -> None:
    whole = ead(TEXTS, vocabulary=100)
    without = np.array([ead(TEXTS[:i] + TEXTS[i + 1 :], vocabulary=100) for i in range(len(TEXTS))])
    values = ead_values(TEXTS, vocabulary=100)
    assert values == pytest.approx(jackknife_values(whole, without))
    assert values.mean() == pytest.approx(whole)
    assert ORDERS == (1, 2, 3, 4, 5)


def test_cosine_diversity_by_hand() -> None:
    # Pairs: 1, 0, 0 → mean cosine 1/3.
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert cosine_diversity(vectors) == pytest.approx(2 / 3)
    assert cosine_diversity(vectors[:2]) == pytest.approx(0)
    assert math.isnan(cosine_diversity(vectors[:1]))


def test_the_values_of_cosines_are_the_jackknife_s() -> None:
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole = 1 - np.mean([a @ b for a, b in combinations(vectors, 2)])
    assert cosine_diversity(vectors) == pytest.approx(whole)
    without = np.array([cosine_diversity(np.delete(vectors, i, axis=0)) for i in range(7)])
    assert cosine_values(vectors) == pytest.approx(jackknife_values(float(whole), without))
    pairs = np.array(list(combinations(range(7), 2)))
    values = np.array([1 - vectors[i] @ vectors[j] for i, j in pairs])
    assert pair_values(pairs, values, 7) == pytest.approx(cosine_values(vectors))


def test_the_jackknife_of_a_mean_is_the_values_themselves() -> None:
    values = np.array([1.0, 4.0, 7.0, 0.0])
    without = (values.sum() - values) / 3
    assert jackknife_values(values.mean(), without) == pytest.approx(values)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_the_packaged_model_finds_paraphrases_less_diverse_than_unrelated_texts(embedder: Embedder) -> None:
    alike = ["The cat sleeps on the sofa.", "A cat is sleeping on the couch."]
    unlike = ["The cat sleeps on the sofa.", "Interest rates rose by half a point."]
    vectors = embedder(alike)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert cosine_diversity(vectors) < 0.4
    assert cosine_diversity(embedder(unlike)) > 0.8


def test_a_text_is_embedded_once(embedder: Embedder) -> None:
    steps: list[int] = []
    embedder.prepare(["one", "two", "one"], steps.append)
    embedder.prepare(["two"], steps.append)
    assert sum(steps) == 2


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=str(tmp_path)):
        Embedder(tmp_path)
    with pytest.raises(StudyError, match=str(tmp_path)):
        CrossEncoder(tmp_path)


def _write_cross_encoder(folder: Path, labels: tuple[str, ...]) -> None:
    """A classifier of random weights over a tokenizer of characters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    letters = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz .#"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(letters)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=len(labels), id2label=dict(enumerate(labels)), initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)


def test_nli_weighs_the_likeliest_label_by_its_probability_in_both_directions(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")
    _write_cross_encoder(tmp_path, labels)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def worth(first: str, second: str) -> float:
        with torch.inference_mode():
            shares = model(**tokenizer(first, second, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        return (-1.0, 0.0, 1.0)[shares.index(max(shares))] * max(shares)

    judge, texts = (
        CrossEncoder(tmp_path),
        ["a cat", "no dog here", "xyz", "a cat sat", "q", "jumps over", "b"],
    )
    pairs = list(combinations(texts, 2))
    expected = [(worth(a, b) + worth(b, a)) / 2 for a, b in pairs]
    assert judge(pairs) == pytest.approx(expected, abs=1e-5)
    assert min(expected) < 0 < max(expected)
    whole = nli_diversity(texts, judge, most=100)
    assert whole == pytest.approx(np.mean(expected), abs=1e-5)
    assert nli_values(texts, judge, most=100).mean() == pytest.approx(whole)
    assert math.isnan(nli_diversity(["a"], judge, most=5))


def test_a_classifier_of_something_else_is_refused(tmp_path: Path) -> None:
    _write_cross_encoder(tmp_path, ("spam", "ham"))
    with pytest.raises(StudyError, match="its labels are spam, ham"):
        CrossEncoder(tmp_path)


def test_pairs_are_all_or_a_seeded_sample() -> None:
    assert len(draw_pairs(5, 10, 0)) == 10
    some = draw_pairs(50, 20, 0)
    assert len({tuple(pair) for pair in some.tolist()}) == 20 and (some[:, 0] < some[:, 1]).all()
    assert np.array_equal(some, draw_pairs(50, 20, 0))
    assert draw_pairs(1, 10, 0).shape == (0, 2)


@pytest.mark.parametrize("text", ["bleu", "ead:folder", "nli", ""])
def test_an_unknown_measure_is_refused_by_name(text: str) -> None:
    with pytest.raises(StudyError, match="expected ead"):
        load_measure(text)


def test_texts_without_spaces_are_told_apart() -> None:
    alike = ead(["今天天气很好"] * 4)
    different = ead(["今天天气很好", "我们去公园散步", "巴黎是法国的首都", "他喜欢喝绿茶"])
    assert different > 2 * alike > 0
    assert words("今天很好。 good.") == ["今", "天", "很", "好", "good"]
