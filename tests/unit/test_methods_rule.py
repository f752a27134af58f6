"""scripts/methods.py: the rule that chooses each method's rate, and the pairs a reader graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.scripts import load_script
from support.tokenizers import byte_tokenizer, with_chat_template

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.feedback import load_feedback, pairs
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.rivals import graded_pairs

methods = load_script("methods")
ANSWERS = [f"{start} a slow walk every evening before bed" for start in ("Take", "Try", "Do", "Go")]


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    monkeypatch.setattr(methods, "RATES", {"ppo": (1e-4, 2e-4, 4e-4)})
    monkeypatch.setattr(methods, "committed_zero", {"validation": {"first": np.ones(4)}}.get)
    return tmp_path


def trial(rate: float, gain: float, kl: float, *, ended: float = 0.9, noise: float = 0.01) -> None:
    """A trial whose gain has a standard error of about half the noise."""
    looks = [
        {
            "scores": {"first": list(start + noise * np.array([1, -1, 1, -1]) * step)},
            "answers": ANSWERS, "kl": [kl * step] * 4, "ended": [ended] * 4,
        }
        for step, start in ((0, 0.3), (1, 1.0 + gain))  # the first draw is not what counts
    ]  # fmt: skip
    found = {"method": "ppo", "learning_rate": rate, "queries": ["Why?"] * 4, "looks": looks}
    methods.path_of("trial", "ppo", f"{rate:g}").write_text(json.dumps(found))


def taken() -> float:
    return methods.rate_of(methods.trials_of("ppo"))


def test_near_the_best_the_smallest_kl_wins_and_the_edge_asks_for_one_more() -> None:
    trial(1e-4, 0.50, 2.0, noise=0.2)
    trial(2e-4, 0.55, 4.0, noise=0.2)
    assert methods.next_rate("ppo") == 4e-4, "the third of the three"
    trial(4e-4, 0.56, 6.0, noise=0.2)
    assert taken() == 1e-4
    assert methods.next_rate("ppo") == pytest.approx(5e-5), "the smallest won"
    trial(5e-5, 0.1, 1.0)
    assert taken() == 1e-4 and methods.next_rate("ppo") is None
    trial(5e-5, 0.56, 1.0)
    assert taken() == 5e-5 and methods.next_rate("ppo") is None, "one more, once"


def test_the_samples_come_first_then_the_trials_then_the_seeds(folder: Path) -> None:
    samples = ["samples", "best of n", "0"]
    assert methods.jobs() == [samples], "the trials are measured from them"
    methods.path_of(*samples).write_text("{}")
    assert methods.jobs() == [["trial", "ppo", "1e-04"]]
    for rate, gain in ((1e-4, 0.9), (2e-4, 0.5), (4e-4, 0.4)):
        trial(rate, gain, 3.0)
    assert methods.jobs() == [["trial", "ppo", "5e-05"]], "the smallest won"
    trial(5e-5, 0.95, 3.0)
    assert methods.jobs() == [["seed", "ppo", str(seed)] for seed in range(3)]


def test_a_middle_rate_needs_no_fourth() -> None:
    for rate, gain in ((1e-4, 0.2), (2e-4, 0.9), (4e-4, 0.5)):
        trial(rate, gain, 3.0)
    assert taken() == 2e-4 and methods.next_rate("ppo") is None


def test_too_far_or_against_the_form_is_out_unless_all_are() -> None:
    trial(1e-4, 0.2, 2.0)
    trial(2e-4, 0.9, 10.5)
    trial(4e-4, 1.5, 5.0, ended=0.5)
    assert taken() == 1e-4
    trial(1e-4, 0.2, 12.0)
    assert taken() == 2e-4, "all too far: the gain decides"
    for rate, gain in ((1e-4, 0.2), (2e-4, 0.9), (4e-4, 1.5)):
        trial(rate, gain, 3.0, ended=0.5)
    assert taken() == 4e-4


def test_of_two_methods_each_has_its_own_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "RATES", {"dpo": (1e-4,), "dpo, graded pairs": (1e-4,)})
    for method, gain in (("dpo", 1), ("dpo, graded pairs", 2)):
        trial(1e-4, gain, 1.0)
        text = methods.path_of("trial", "ppo", "0.0001").read_text().replace('"ppo"', f'"{method}"')
        methods.path_of("trial", method, "0.0001").write_text(text)
    assert [row["gain"] for row in methods.trials_of("dpo")] == pytest.approx([1])
    assert [row["gain"] for row in methods.trials_of("dpo, graded pairs")] == pytest.approx([2])


CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class _Run:
    """What `graded_pairs` asks of a run."""

    def load_template(self) -> Any:
        return PRESETS["smollm2"].template.bind(with_chat_template(byte_tokenizer(), CHATML))


def test_the_graded_pairs_are_a_readers_and_end_as_the_answers_did() -> None:
    rows = load_feedback(resolve(Bundled("feedback")) / "train.jsonl")
    given = {row["prompt"]: row["answers"] for row in rows}
    run = _Run()
    template = run.load_template()
    found = graded_pairs(run, 40, seed=3)
    assert len(found) == 40 and found == graded_pairs(run, 40, seed=3)
    assert found != graded_pairs(run, 40, seed=4)
    assert len(graded_pairs(run)) == len(graded_pairs(run, 10_000)) == len(pairs(rows))
    ends = set()
    for pair in found:
        (prompt,) = (p for p in given if template.encode(p) == pair["prompt_ids"])
        grade = {}
        for side in ("chosen", "rejected"):
            ids = pair[f"{side}_ids"]
            ended = ids[-1] in template.eos_token_ids
            text = template.tokenizer.decode(ids[:-1] if ended else ids)
            (grade[side],) = {
                answer["grade"]
                for answer in given[prompt]
                if (answer["text"], answer["ended"]) == (text, ended)
            }
            ends.add(ended)
        assert grade["chosen"] > grade["rejected"]
    assert ends == {True, False}
