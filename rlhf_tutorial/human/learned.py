"""What a judge has learned, in words: what its favourites among unlabelled answers have in common.

A judge is a line through dozens of numbers that mean nothing to a reader. What it likes can still
be read off its scores: of many answers that nobody has labelled, which words, lengths and endings
stand in the better ones?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from ..evaluation.measures import ends_in_sentence, words
from ..scores import checked_scores

if TYPE_CHECKING:
    import pandas as pd


def liked_words(texts: Sequence[str], scores: Sequence[float], least: int = 10) -> pd.DataFrame:
    """Words by the difference they make: mean score of the answers with one, less that without.

    A difference is no cause: a word may stand where something else is liked.

    Args:
        texts: answers. scores: one for each.
        least: how many answers must have the word, and how many must not.

    Returns:
        A row a word, from the best liked to the least: `difference`, `error` (its standard error),
        `answers` (that have it); indexed by `word`.
    """
    import pandas as pd

    values, said = _checked(texts, scores), [set(words(text)) for text in texts]
    counts = Counter(word for each in said for word in each)
    rows = []
    for word, count in counts.items():
        if count < least or len(said) - count < least:
            continue
        has = np.array([word in each for each in said])
        with_it, without = values[has], values[~has]
        error = (with_it.var(ddof=1) / count + without.var(ddof=1) / len(without)) ** 0.5
        rows.append((word, with_it.mean() - without.mean(), error, count))
    table = pd.DataFrame(rows, columns=["word", "difference", "error", "answers"])
    return table.sort_values("difference", ascending=False, kind="stable").set_index("word")


def extremes(
    prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float], n: int = 5
) -> pd.DataFrame:
    """The n answers with the best score and the n with the worst: score, prompt and answer."""
    import pandas as pd

    table = pd.DataFrame({"score": _checked(texts, scores), "prompt": prompts, "answer": texts})
    ordered = table.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    return pd.concat([ordered.head(n), ordered.tail(n)]).drop_duplicates(ignore_index=True)


def plain_causes(texts: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """How much of the scores is told by length and by the ending alone.

    Returns:
        Correlations of the score with "words" (their number) and "ends" (as a sentence does), and
        0 where all answers are alike in it.
    """
    values = _checked(texts, scores)
    found = {}
    for name, measure in (("words", lambda text: len(words(text))), ("ends", ends_in_sentence)):
        counted = np.array([measure(text) for text in texts], dtype=float)
        alike = counted.std() == 0 or values.std() == 0
        found[name] = 0.0 if alike else float(np.corrcoef(counted, values)[0, 1])
    return found


def _checked(texts: Sequence[str], scores: Sequence[float]) -> np.ndarray:
    """The scores as numbers; DataError where there are no two answers."""
    if len(texts) < 2:
        raise DataError(f"{len(texts)} answers show no preference: give two at least")
    return np.array(checked_scores(scores, len(texts)))
