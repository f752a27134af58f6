"""The page on performance, and what the README says of it, against the committed benchmarks."""

from __future__ import annotations

import json

from support import ROOT

BENCHMARKS = ROOT / "benchmarks"


def test_the_committed_page_shows_the_committed_numbers(monkeypatch):
    """If this fails: python benchmarks/draw.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import draw

    folder = BENCHMARKS / "results"
    results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert draw.tables(page, results) == page
    original, *_, frozen = results["ppo_step"]
    assert original["variant"] == "original" and frozen["variant"] == "ours, frozen trunk, bf16"
    full = next(r for r in results["ppo_step"] if r["variant"] == "ours, full, bf16")
    times = [original["seconds"]["total"] / r["seconds"]["total"] for r in (frozen, full)]
    memory = frozen["peak_bytes"] / original["peak_bytes"]
    sentence = (
        f"preset is {times[0]:.0f} times faster in {memory:.0%} of the memory, and full "
        f"fine-tuning in bfloat16 {times[1]:.1f} times"
    )
    assert sentence in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
