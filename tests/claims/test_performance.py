"""The page on performance, and what that on presets says of it, against the benchmarks."""

from __future__ import annotations

import json

import torch
from support import ROOT

BENCHMARKS = ROOT / "benchmarks"


def page_of(name: str) -> str:
    """The page of docs/, in one line."""
    return " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())


def test_the_committed_page_shows_the_committed_numbers(monkeypatch):
    """If this fails: python benchmarks/draw.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import draw

    folder = BENCHMARKS / "results"
    results = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*.json")}
    for name in draw.PAGES:
        page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert draw.tables(page, results) == page
    pages = "".join(page_of(name) for name in draw.PAGES)
    for marker in (*draw.TABLES, "step on a GPU"):
        assert pages.count(f"<!-- {marker} -->") == 1
    original, *_, frozen = results["ppo_step"]
    assert original["variant"] == "original" and frozen["variant"] == "ours, frozen trunk, bf16"
    full = next(r for r in results["ppo_step"] if r["variant"] == "ours, full, bf16")
    times = [original["seconds"]["total"] / r["seconds"]["total"] for r in (frozen, full)]
    memory = frozen["peak_bytes"] / original["peak_bytes"]
    sentence = (
        f"a step that trains 8 of 30 layers is {times[0]:.0f} times faster in {memory:.0%} of the "
        f"memory, and full fine-tuning in bfloat16 {times[1]:.1f} times"
    )
    assert sentence in page_of("presets")


def test_the_page_on_speed_has_two_pages():
    lines = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8").splitlines()
    assert sum(len(line.split()) for line in lines if not line.startswith("|")) <= 1_100


def test_what_the_page_says_cannot_be_had_in_float32():
    """The floor of the committed rows, and the memory of the original's shapes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rows = json.loads((BENCHMARKS / "results" / "ppo_step_gpu.json").read_text(encoding="utf-8"))
    by_variant = {row["variant"]: row for row in rows}
    original, full = by_variant["original"], by_variant["ours, full, float32"]
    wanted, floor = original["seconds"]["total"] / 15, full["flop"] / full["matmul_rate"]
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    weights = sum(p.numel() for p in model.parameters()) * 4 / 2**30
    page = page_of("performance")
    assert wanted < floor
    assert (
        f"15 times would be {wanted:.2f} s a step, and its products alone take {floor:.2f} s"
        in page
    )
    # Policy and reference, the gradients, and Adam's two moments.
    assert original["peak_bytes"] / 2**30 / 2 < 5 * weights
    assert f"less than the {5 * weights:.1f} GiB of policy, reference, gradients and Adam" in page
    frozen = [row for name, row in by_variant.items() if "frozen" in name]
    assert all(row["peak_bytes"] < original["peak_bytes"] / 2 for row in frozen)
    assert all(row["flop"] / row["matmul_rate"] < wanted for row in frozen)


def test_what_a_gpu_measured_goes_into_the_page(monkeypatch):
    """Made-up rows of scripts/on_gpu.py's tables."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import draw

    def row(model: str, batch_size: int, variant: str, total: float) -> dict:
        seconds = {"total": total, "generate": 0.03, "step": total - 0.03}
        told = {"model": model, "batch_size": batch_size, "variant": variant}
        return told | {"seconds": seconds, "peak_bytes": 2**30}

    measured = {
        "the original's": [row("dlite", 16, "original", 3.0), row("dlite", 16, "ours", 0.13)],
        "a judge": [{"batch_size": 16, "seconds": 0.02}, {"batch_size": 64, "seconds": 0.07}],
        "the preset's": [row("smollm2", 16, "ours", 0.0724)],
    }
    text = "Before.\n<!-- step on a GPU -->\nold\n<!-- end -->\nAfter.\n"
    results = {name: [] for name in ("ppo_step", "scaling")}
    results |= {"scoring": {"seconds": {"": 1}, "answers": 1}, "perplexity": {}, "on_gpu": measured}
    monkeypatch.setattr(draw.perplexity, "table", lambda _: "")
    found = draw.tables(text, results)
    assert found.startswith("Before.\n<!-- step on a GPU -->\nthe original's:\n\n| |")
    assert found.endswith("|\n<!-- end -->\nAfter.\n") and "old" not in found
    assert "| ours | 0.13 | 0.030 | 0.10 | 23.1 | 1.00 GiB |" in found
    assert "the preset's:" in found and "| ours | 0.072 | 0.030 | 0.042 |" in found
    assert "6,400 prompts, scoring included" in found and "| ours | 16 | 1.0 |" in found


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
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = ["LoRA of rank 16", "frozen trunk, top 12 of 30 layers"]
    rows += ["all layers, reference of its own"]
    for row, a, b in zip(rows, trained, together, strict=True):
        assert f"| {row} | {a / 1e6:.1f} million | {b / 1e6:.1f} million |" in page
    page = page_of("coming-from-trl")
    full = f"{2 * whole / 1e6:.1f}"
    assert f"have {together[0] / 1e6:.1f} million weights, with a full copy {full} million" in page
