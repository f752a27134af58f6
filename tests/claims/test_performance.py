"""The page on performance, and what that on presets says of it, against the benchmarks."""

from __future__ import annotations

import json

import torch
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
        f"a step that trains 8 of 30 layers is {times[0]:.0f} times faster in {memory:.0%} of the "
        f"memory, and full fine-tuning in bfloat16 {times[1]:.1f} times"
    )
    presets = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert sentence in " ".join(presets.split())


def test_the_weights_of_lora_policies_on_the_pages_are_counted():
    """SmolLM2-135M's shapes, without its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf_tutorial.lora import all_linear
    from rlhf_tutorial.models import AutoModelForCausalLMWithValueHead

    sizes = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 30}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
        whole = sum(p.numel() for p in model.parameters())
        top = sum(p.numel() for p in model.model.layers[18:].parameters())
        top += sum(p.numel() for p in model.model.norm.parameters())
        policy = AutoModelForCausalLMWithValueHead.from_pretrained(
            model, peft_config=all_linear(16)
        )
    adapter = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    trained, together = (adapter, top, whole), (whole + adapter, whole + top, 2 * whole)
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = ["LoRA of rank 16", "frozen trunk, top 12 of 30 layers"]
    rows += ["all layers, reference of its own"]
    for row, a, b in zip(rows, trained, together, strict=True):
        assert f"| {row} | {a / 1e6:.1f} million | {b / 1e6:.1f} million |" in page
    page = " ".join((ROOT / "docs" / "coming-from-trl.md").read_text(encoding="utf-8").split())
    full = f"{2 * whole / 1e6:.1f}"
    assert f"have {together[0] / 1e6:.1f} million weights, with a full copy {full} million" in page
