"""The pages in docs/ against the code: keys, fields, tests and files that they name, and scripts.

What a page repeats from elsewhere (figures of the committed run, fields, reasons for refusals) is
compared with its source. To bring the pages up to date: python scripts/update_docs.py
"""

from __future__ import annotations

import ast
import json
import logging
import math
import re
import warnings
from pathlib import Path

import pytest
import torch
from support import ROOT
from support.lookalikes import make_policy as make_policy_folder
from support.lookalikes import preferences
from support.scripts import load_script

from rlhf_tutorial import PPOConfig, PPOTrainer
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_patients

DOCS = sorted((ROOT / "docs").glob("*.md"))
update_docs = load_script("update_docs")
METRICS, FROM_TRL = update_docs.METRICS, update_docs.FROM_TRL
MEND = "python scripts/update_docs.py mends it"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


# What the pages repeat -------------------------------------------------------------------------


def test_the_figures_of_the_run_are_the_committed_logs() -> None:
    page = read(METRICS)
    assert len(update_docs.RUN.findall(page)) > 25
    assert update_docs.with_run_figures(page, update_docs.committed_log()) == page, MEND


def test_what_the_page_says_of_the_run_and_of_the_clinic_by_hand() -> None:
    page, preset = read(METRICS), PRESETS["smollm2"]
    epochs = preset.ppo["ppo_epochs"]
    assert f"one mini-batch, {epochs} PPO epochs" in page and "(a half for the run)" in page
    assert 1 - 1 / epochs == 0.5
    log = update_docs.committed_log()
    assert all(row["objective/kl"] < 10 for row in log), "the rule of thumb holds for the run"
    assert all(row["ppo/policy/approxkl"] < 0.1 for row in log)
    moved = {
        name: committed_patients()[name]["stats"]["ppo/policy/approxkl"]
        for name in ("healthy", "learning-rate")
    }
    assert f"begins at {moved['healthy'][0]:.2f}" in page and max(moved["healthy"][2:]) < 0.1
    assert f"`learning-rate`, {moved['learning-rate'][0]:.0f} in its first step" in page
    update, rest = (
        sum(row[f"time/ppo/{part}"] for row in log) for part in ("optimize_step", "total")
    )
    results = json.loads((ROOT / "notebooks/results/smollm2/results.json").read_text("utf-8"))
    assert update / rest > 0.5 and 0.3 < update / results["training"]["seconds"] < 0.36
    assert "most of `time/ppo/total`" in page and "a third of the run's whole step" in page


def test_figures_that_are_not_the_logs_are_noticed() -> None:
    log = [{"a/b": float(i)} for i in range(40)]
    page = "| `a/b` | run: 0 to 1; run: 3 → 4. | |\n| `a/c` | |"
    mended = page.replace("0 to 1", "0 to 39").replace("3 → 4", "4.5 → 34")
    assert update_docs.with_run_figures(page, log) == mended
    with pytest.raises(KeyError, match="a/c"):
        update_docs.with_run_figures("| `a/c` | run: 0 to 1 |", log)


def test_every_field_stands_on_the_page_and_every_refusal_with_its_reason() -> None:
    page = read(FROM_TRL)
    assert update_docs.with_fields(page) == page, MEND
    config, models = update_docs.config, update_docs.models
    for name in [*config.NOT_SUPPORTED, *config.WITHOUT_EFFECT, *models.NOT_SUPPORTED]:
        assert page.count(f"| `{name}` |") == 1, name


def test_the_script_mends_both_pages(tmp_path, monkeypatch) -> None:
    for name in ("METRICS", "FROM_TRL"):
        page = getattr(update_docs, name)
        copy = tmp_path / page.name
        damaged = re.sub(r"run: -?\d\S* to", "run: 7e-7 to", read(page))
        damaged = damaged.replace("`batch_size`, ", "")
        copy.write_text(damaged, encoding="utf-8")
        monkeypatch.setattr(update_docs, name, copy)
    update_docs.main()
    for page in (METRICS, FROM_TRL):
        assert read(tmp_path / page.name) == read(page), MEND


# Names on the pages ----------------------------------------------------------------------------


@pytest.fixture
def trainer(make_policy, tokenizer) -> PPOTrainer:
    config = PPOConfig(batch_size=6, mini_batch_size=3, learning_rate=1e-3)
    return PPOTrainer(config, make_policy("gpt2", layers=2), tokenizer=tokenizer)


def test_each_key_has_one_entry_and_no_entry_lacks_its_key(trainer, samples) -> None:
    stats, logged = trainer.step(*samples), {}
    entries = [match[1] for match in update_docs.ROW.finditer(read(METRICS))]
    assert sorted(entries) == sorted(stats)
    trainer.accelerator.log = lambda values, **_: logged.update(values)
    trainer.log_stats(stats, {"query": [""] * 6, "response": [""] * 6}, samples[2])
    for page in DOCS:
        named = set(re.findall(r"`((?:objective|ppo|tokens|time|env)/\w[\w/]*)`", read(page)))
        with_ptx = {"ppo/loss/ptx"}  # only with ptx_coef: see test_ptx.py
        assert named <= logged.keys() | with_ptx, f"{page.name}: {named - logged.keys()}"


def test_each_entry_has_a_formula_a_range_and_what_is_outside() -> None:
    for match in update_docs.ROW.finditer(read(METRICS)):
        cells = match[0].strip("| ").split(" | ")
        assert len(cells) == 4 and all(cells), match[0]


def test_every_test_that_a_page_names_exists() -> None:
    sources = [read(path) for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {name for text in sources for name in re.findall(r"^def (test_\w+)\(", text, re.M)}
    named = {name for page in DOCS for name in re.findall(r"`(test_\w+)`", read(page))}
    assert len(named) > 15
    assert not named - tests


def test_every_intended_difference_names_its_test() -> None:
    section = read(FROM_TRL).split("## Intended differences")[1].split("\n## ")[0]
    items = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(items) > 10
    for item in items:
        assert "`test_" in item, item


def slug(heading: str) -> str:
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda path: path.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(target), flags=re.MULTILINE)
            assert anchor in map(slug, headings), link


# The two scripts -------------------------------------------------------------------------------


def scripts() -> tuple[str, str]:
    """Before and after."""
    section = read(FROM_TRL).split("## A script before and after")[1]
    before, after = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    return before, after


def test_only_the_imports_change() -> None:
    before, after = (text.splitlines() for text in scripts())
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2
    for old, new in changed:
        assert old.startswith("from trl") and new.startswith("from rlhf_tutorial import")
    ast.parse("\n".join(before))


def test_the_script_with_lora_runs(tmp_path, monkeypatch) -> None:
    texts = [text for row in preferences() for text in row.values()]
    make_policy_folder(tmp_path / "policy", texts)
    monkeypatch.chdir(tmp_path)
    section = read(FROM_TRL).split("## LoRA policies")[1].split("\n## ")[0]
    (script,) = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    names: dict = {}
    exec(compile(script, "lora.py", "exec"), names)
    assert names["model"].is_peft_model
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "ordinary" / "model.safetensors").exists()


def test_the_script_after_the_change_runs(tmp_path, monkeypatch, capsys) -> None:
    from transformers import AutoModelForCausalLM

    texts = [text for row in preferences() for text in row.values()]
    policy = make_policy_folder(tmp_path / "policy", texts)
    prompts = [text.replace("\n", " ")[7:60] for text in texts[:32]]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(scripts()[1], "after.py", "exec"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r"^score -?\d+\.\d+, KL -?\d+\.\d+$", printed, re.MULTILINE)) == 2
    saved, start = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (tmp_path / "cheerful-policy", policy)
    )
    assert any(not torch.equal(saved[name], start[name]) for name in start)


def overriding() -> list[str]:
    """The classes that override a method, each in three lines or four."""
    return re.findall(r"^```py\n(.*?)^```", read(FROM_TRL), re.M | re.S)


@pytest.mark.parametrize("code", overriding(), ids=lambda code: code.split("(")[0].split()[-1])
def test_a_method_is_overridden_as_the_page_says(code, make_policy, tokenizer, samples) -> None:
    from rlhf_tutorial.ppo.math import masked_mean, masked_whiten

    names = {"PPOTrainer": PPOTrainer, "masked_mean": masked_mean, "masked_whiten": masked_whiten}
    exec(code, names)
    kind = next(value for value in names.values() if PPOTrainer in getattr(value, "__bases__", ()))
    stats = {}
    for made in (PPOTrainer, kind):
        config = PPOConfig(batch_size=6, mini_batch_size=6, ppo_epochs=1)
        trainer = made(config, make_policy("llama", layers=2), tokenizer=tokenizer)
        stats[made] = trainer.step(*samples)
    keys = ("ppo/loss/policy", "ppo/returns/mean", "ppo/loss/value")
    changed = any(abs(stats[PPOTrainer][key] - stats[kind][key]) > 1e-4 for key in keys)
    assert changed or 0 < trainer.surest <= 1


def test_the_loop_for_users_of_other_packages_runs(tmp_path, monkeypatch, capsys) -> None:
    page = ROOT / "docs" / "llama-factory-verl-llamagym.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", read(page), re.M | re.S)
    assert len(code.splitlines()) <= 32
    texts = [text for row in preferences() for text in row.values()]
    make_policy_folder(tmp_path / "policy", texts)
    prompts = [text.replace("\n", " ")[7:60] for text in texts[:16]]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "loop.py", "exec"), {})
    printed = capsys.readouterr().out
    assert len(re.findall(r"^score \d+\.\d+, KL -?\d+\.\d+$", printed, re.MULTILINE)) == 2
    assert (tmp_path / "trained" / "value_head.safetensors").exists()


def test_the_table_of_families_is_the_one_that_is_tested() -> None:
    from support.families import table

    assert table() in read(ROOT / "docs" / "families.md")


# What a page says and no other test shows ------------------------------------------------------


def test_answers_after_a_step_come_without_dropout(make_policy, tokenizer, samples) -> None:
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    policy = make_policy("gpt2", layers=2, **rates).train()
    trainer = PPOTrainer(PPOConfig(batch_size=6, mini_batch_size=6), policy, tokenizer=tokenizer)
    trainer.step(*samples)
    assert not trainer.model.training
    greedy = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": -1, "return_prompt": False}
    answers = trainer.generate([samples[0][1]] * 6, **greedy)
    assert len({tuple(answer.tolist()) for answer in answers}) == 1
    policy.train()
    queries = samples[0][1].repeat(6, 1)
    whole = torch.ones_like(queries)
    answers = policy.generate(queries, attention_mask=whole, do_sample=False, max_new_tokens=8)
    assert len({tuple(answer.tolist()) for answer in answers}) > 1, "dropout would have shown"
    answers = trainer.generate([samples[0][1]] * 6, **greedy)
    assert len({tuple(answer.tolist()) for answer in answers}) == 1


def test_a_lone_sample_has_standard_deviation_0_and_a_lone_token_is_refused(
    make_policy, tokenizer
) -> None:
    config = PPOConfig(batch_size=1, mini_batch_size=1)
    trainer = PPOTrainer(config, make_policy(layers=2), tokenizer=tokenizer)
    query, response = torch.tensor([5, 6]), torch.tensor([7, 8, 9])
    stats = trainer.step([query], [response], [1.0])
    for key in ("ppo/std_scores", "tokens/queries_len_std", "tokens/responses_len_std"):
        assert stats[key] == 0, key
    assert all(math.isfinite(v) for v in stats.values() if isinstance(v, float))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match="at least 2 unmasked tokens"):
        trainer.step([query], [response[:1]], [1.0])
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_clearly_negative_kl_is_logged_and_nothing_warns(
    make_policy, tokenizer, samples, caplog
) -> None:
    reference = make_policy(layers=2, seed=1)
    config = PPOConfig(batch_size=6, mini_batch_size=6)
    with warnings.catch_warnings(), torch.no_grad(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        trainer = PPOTrainer(config, make_policy(layers=2), reference, tokenizer)
        # Responses that the reference would rather write than the policy: its own.
        responses = trainer.generate(samples[0], generate_ref_response=True, max_new_tokens=6)[1]
        responses = [r[len(q) :] for q, r in zip(samples[0], responses, strict=True)]
        with torch.enable_grad():
            stats = trainer.step(samples[0], responses, samples[2])
    assert stats["objective/kl"] < -1
    assert "clearly negative" in caplog.text
