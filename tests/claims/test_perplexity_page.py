"""docs/perplexity.md against the committed run."""

from __future__ import annotations

import json

import numpy as np
from support import ROOT

PAGE = " ".join((ROOT / "docs" / "perplexity.md").read_text(encoding="utf-8").split())
FILE = ROOT / "notebooks" / "results" / "smollm2" / "perplexity.json"
RESULT = json.loads(FILE.read_text(encoding="utf-8"))


def averages(values: np.ndarray, tokens: np.ndarray) -> tuple[float, float, float]:
    """Mean over texts, pooled, geometric mean."""
    logs = np.log(values)
    return values.mean(), np.exp((tokens * logs).sum() / tokens.sum()), np.exp(logs.mean())


def texts(when: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    found = RESULT[when][measure]
    return np.array(found["perplexities"]), np.array(found["tokens"])


def test_the_three_averages_are_the_committed_ones() -> None:
    for measure in RESULT["before"]:
        cells = [
            f"{before:.2f} → {after:.2f} ({after / before - 1:+.1%})"
            for before, after in zip(
                averages(*texts("before", measure)), averages(*texts("after", measure)), strict=True
            )
        ]
        assert f"| {measure.replace('_', ' ')} | {' | '.join(cells)} |" in PAGE


def test_two_texts_have_three_averages() -> None:
    mean, pooled, geometric = averages(np.array([1000.0, 10.0]), np.array([2, 98]))
    assert (
        f"the mean over texts is {mean:.0f}, the geometric mean {geometric:.0f}, the pooled "
        f"perplexity {pooled:.0f}." in PAGE
    )


def test_four_texts_carry_what_the_page_says() -> None:
    values, tokens = texts("before", "last_reply")
    keep = np.argsort(values)[:-4]
    (mean, pool, _), (fewer, smaller, _) = (
        averages(values, tokens),
        averages(values[keep], tokens[keep]),
    )
    assert f"falls from {mean:.1f} to {fewer:.1f}, the pooled perplexity" in PAGE
    assert f"the pooled perplexity from {pool:.1f} to {smaller:.1f}" in PAGE
    assert (
        f"carried {1 - fewer / mean:.0%} of the mean and {1 - smaller / pool:.0%} of the pool"
        in PAGE
    )


def test_the_originals_fall_is_stated_in_parts_of_what_was_before() -> None:
    before, after = 31.351, 25.680
    assert f"| before | {before:.3f} | | after | {after:.3f} |" in PAGE
    assert f"fell by {1 - after / before:.1%}" in PAGE and f"({before / after - 1:.1%})" in PAGE
