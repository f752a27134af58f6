"""Notebooks 05 to 07: what their prose says of the committed run, against its results."""

from __future__ import annotations

import ast
import json
import re
from itertools import pairwise
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from support import ROOT
from support.notebooks import answer_and_reason, outputs_and_prose
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.compare import load_table
from rlhf_tutorial.evaluation.intervals import paired_difference
from rlhf_tutorial.evaluation.measures import ends_in_sentence, words
from rlhf_tutorial.evaluation.reading import (
    compare_sources,
    gain_by_ending,
    gain_where_both_ended,
    gains_of,
)
from rlhf_tutorial.exercises import EXERCISES
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_overoptimisation, committed_trainings
from rlhf_tutorial.studies.looks import levels

RESULTS = ROOT / "notebooks" / "results" / "smollm2"
LOG = pd.DataFrame(
    [json.loads(line) for line in (RESULTS / "stats.jsonl").read_text("utf-8").splitlines()]
)


class Notebook:
    """A committed notebook: its prose in one line, and what its cells have shown."""

    def __init__(self, name: str) -> None:
        (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
        self.cells: list[Any] = nbformat.read(path, as_version=4).cells
        self.outputs, prose = outputs_and_prose(path.name)
        self.prose = " ".join(prose.split())

    def shown(self, cell: str) -> str:
        return self.outputs[cell]

    def answer(self, cell: str) -> str:
        return answer_and_reason(self.outputs[cell])

    def says(self, *parts: str) -> bool:
        return all(part in self.prose for part in parts)


@pytest.fixture(scope="module")
def training() -> Notebook:
    return Notebook("05")


def tens(key: str) -> list[float]:
    """The means of a number of the log over ten steps each."""
    return LOG[key].to_numpy().reshape(-1, 10).mean(axis=1).tolist()


@pytest.mark.parametrize("name", ["05", "06", "07"])
def test_there_is_something_to_guess_and_something_to_write(name: str) -> None:
    cells = Notebook(name).cells
    order, solutions = [], 0
    for before, cell in pairwise(cells):
        if cell.cell_type == "code" and cell.source.startswith("guess = None"):
            assert "**Guess.**" in before.source
            order.append("guess")
        if cell.cell_type == "code" and "reveal(" in cell.source:
            order.append("answer")
        solutions += "solution" in cell.metadata.get("tags", [])
    assert order == ["guess", "answer"] * (len(order) // 2) and len(order) >= 6
    assert solutions >= 3


def test_the_training_rose_and_paid(training: Notebook) -> None:
    scores, kl = tens("ppo/mean_scores"), tens("objective/kl")
    assert training.says(f"from {scores[0]:.2f} in the first ten batches to {scores[-1]:.2f}")
    rise = scores[-1] - scores[0]
    errors = LOG["ppo/std_scores"].to_numpy().reshape(-1, 10) / 4
    of_ten = np.sqrt((errors**2).sum(axis=1)) / 10
    assert rise / np.hypot(of_ten[0], of_ten[-1]) > 4
    assert training.says(f"The rise of {rise:.2f} is more than four times its standard error")
    left = [score - 0.05 * nats for score, nats in zip(scores, kl, strict=True)]
    assert training.says("Read the last row: " + ", ".join(f"{x:.2f}" for x in left) + ".")
    assert scores[3] - scores[1] == pytest.approx(0.08, abs=0.005)
    assert kl[3] - kl[1] == pytest.approx(0.7, abs=0.05)
    late = left[3] - left[1]
    assert f"{late:.2f}" == "0.05" and late < np.hypot(of_ten[1], of_ten[3])
    assert training.says(
        "0.08 of score for 0.7 nats. What's left of that, 0.05, is less than its standard error"
    )
    done = EXERCISES["done_after"].solution(np.array(left), of_ten)
    missed = 2 * np.hypot(of_ten[1], of_ten[3])
    assert abs(missed - 0.14) < 0.02 and training.says("a rise of less than 0.14 would have")
    assert done == 1 and training.shown("done").startswith("Done after steps 11 to 20: 1.68")
    assert f"{left[1] - left[0]:.2f}" == "0.17"
    assert 45 < 100 * 0.05 * (kl[-1] - kl[0]) / rise < 55 and training.says(
        "half of the rise was paid back as KL penalty"
    )
    falls = int((np.diff(LOG["ppo/mean_scores"]) < 0).sum())
    assert training.answer("falls").startswith(f"{falls}. Of 39.")


def test_the_training_is_as_healthy_as_the_table_says(training: Notebook) -> None:
    late = LOG["objective/kl"][15:]
    assert training.says(f"between {late.min():.1f} and {late.max():.1f} from step 16 on")
    for key, form in (
        ("ppo/policy/entropy", "{0:.2f} → {1:.2f} nats per token."),
        ("ppo/policy/clipfrac", "{0:.0%} → {1:.0%}: as"),
        ("tokens/responses_len_mean", "{0:.1f} → {1:.1f} tokens"),
    ):
        means = tens(key)
        assert training.says(form.format(means[0], means[-1])), key
    explained = tens("ppo/val/var_explained")
    assert [x < 0 for x in explained] == [False, True, False, False]
    assert f"{explained[-1]:.2f}" in ("0.14", "0.15") and training.says("0.15 at the end")
    smooth = LOG["ppo/val/var_explained"].rolling(10, min_periods=1).mean()
    assert training.answer("weak").startswith(
        f"value head. Steps outside the band, of 40: KL 0, clip 0, value head {(smooth < 0).sum()}."
    )
    low = [i + 1 for i, x in enumerate(smooth) if x < 0 and i >= 5]
    assert low == list(range(15, 26)) and (smooth < 0).sum() == len(low) + 2
    assert training.says("is below 0 at two of the first steps, and again from step 15 to 25")
    lag = np.array(tens("ppo/returns/mean")) - tens("ppo/val/mean")
    assert lag.argmax() == 1 and training.says("the scores ran ahead of the head")


def test_the_run_on_new_prompts_is_as_its_tables_have_it(training: Notebook) -> None:
    signs = training.shown("signs-table")
    row = dict(re.findall(r"(?m)^(.+?) {2,}.*? (\S+)$", signs))
    assert row["ends in a sentence"] == "93%" and "48%" in signs
    assert training.says("48 end in a sentence", "one in fourteen", "shorter by nine words")
    assert training.says("15 answers in 100 before and 20 after", "no two words open more than 4")
    assert training.says("50% instead of 42%") and "42%           50%" in signs
    found = re.findall(r"(\d\.\d\d) +\d\.\d\d +\+(0\.\d\d) \(", training.shown("prediction"))
    assert list(dict.fromkeys(found)) == [("1.28", "0.82"), ("1.21", "0.61")]
    assert training.says("0.82 grades by the judge that trained it, and 0.61 by a judge")
    assert training.says("0.6 to 0.8 grades better")


def test_the_six_answers_are_as_they_are_spoken_of(training: Notebook) -> None:
    (table,) = (
        out.data["text/html"] for c in training.cells if c.id == "samples" for out in c.outputs
    )
    rows = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    scores = [(float(rows[i + 2]), float(rows[i + 4])) for i in range(0, len(rows), 5)]
    rises = [after - before for before, after in scores]
    assert scores[int(np.argmax(rises))] == (-0.04, 2.57) and "analogy" in rows[5 * 5]
    assert (0.87, 2.73) in scores and "Yes, use heat." in rows
    assert training.says("from −0.04 to 2.57", '"Yes, use heat." goes from 0.87 to 2.73')


def test_draws_and_seeds_are_as_far_apart_as_is_said(training: Notebook) -> None:
    default = PRESETS["smollm2"]
    assert default.value_head_learning_rate == 5 * default.ppo["learning_rate"]
    assert training.says("**Value head**: five times the policy's rate")
    trainings = committed_trainings()
    seeds = [trainings[f"default, seed {seed}"] for seed in range(3)]
    runs = [levels(of) for of in (*seeds, trainings["long, seed 0"])]
    before, ends = ([f"{run[i]['first']:.2f}" for run in runs] for i in (0, -1))
    assert before == ["1.28", "1.34", "1.41", "1.28"] and training.says("1.28, 1.34 and 1.41")
    gains = [f"{run[-1]['first'] - run[0]['first']:.2f}" for run in runs[:3]]
    assert training.says(f"These three gain {gains[0]}, {gains[1]} and {gains[2]}")
    mean = np.mean([run[-1]["first"] for run in runs[:3]])
    assert f"{mean:.2f}" == "2.01" and training.says("end at a mean score of 2.01")
    more = runs[3][-1]["first"] - mean
    assert 1 / 7.5 < more < 1 / 6.5
    told = training.answer("long-answer")
    assert told.startswith(f"{more:.3g}. {ends[3]} against {', '.join(ends[:3])}.")
    lead = np.subtract(
        *(t["looks"][-1]["scores"]["first"] for t in (trainings["long, seed 0"], seeds[0]))
    )
    assert f"{lead.mean():.2f}" == "0.13" and 1.7 < lead.mean() / (lead.std(ddof=1) / 96**0.5) < 2.3
    error = lead.std(ddof=1) / 96**0.5
    assert f"{error:.2f}" == "0.06" and training.says(
        "only 0.13 above the best seed. (Compared prompt by prompt, ± 0.06: about two standard"
    )
    gains = [run["first"] for run in runs[3]]
    assert int(np.argmax(gains)) == 3 and training.says("the policy climbs until step 30")
    assert training.says(
        f"the untouched policy has {TABLE['score_before'].mean():.2f}, the run above gains "
        f"{TABLE['gain'].mean():.2f} (notebook 06)"
    )
    assert training.says(
        f"with other prompts, and they say {TABLE['gain'].mean():.2f} and "
        f"{TABLE['second_gain'].mean():.2f}"
    )
    twin = [step["score"] for step in seeds[0]["steps"][:3]]
    same = [
        round(score, 3) == round(own, 3)
        for score, own in zip(twin, LOG["ppo/mean_scores"], strict=False)
    ]
    assert same == [True, True, False] and training.says("the same first two batches")


@pytest.fixture(scope="module")
def comparison() -> Notebook:
    return Notebook("06")


TABLE = load_table(RESULTS / "comparison.csv")
READING = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
SEEDS = [f"default-{seed}" for seed in range(3)]
OWN = [f"{name}, best" for name in SEEDS]


def mean_grade(source: str) -> float:
    answers = [a for row in READING for a in row["answers"] if a["source"] == source]
    return float(np.mean([answer["grade"] for answer in answers]))


def test_the_gain_is_that_of_the_table_and_of_the_reader(comparison: Notebook) -> None:
    found = compare_sources(READING, "untouched, best", OWN)
    gain = found["grade_after"] - found["grade_before"]
    assert comparison.says(
        f"{TABLE['gain'].mean():.2f} grades more by the training judge",
        f"and {TABLE['second_gain'].mean():.2f} more by a judge that it never met",
        f"grades more than the untouched policy's, and {gain:.2f} more with each at",
        f"{100 * found['acceptable_after']:.0f} of its answers in 100 have a 3 or better, where "
        f"{100 * found['acceptable_before']:.0f} had",
    )
    deviation = TABLE["score_before"].std()
    assert 0.7 < TABLE["gain"].mean() / deviation < 0.8
    assert comparison.says("0.56, three quarters of a standard deviation")
    assert 0.74 < found["win_rate"] < 0.77 and comparison.says("wins three pairs in four")
    parts = gain_by_ending(READING, "untouched, best", OWN, resamples=1)
    share = 100 * parts["by_ending"] / gain
    assert comparison.answer("ending").startswith(f"{share:.1f}.")
    equal = compare_sources(READING, "untouched", SEEDS)
    at_half = equal["grade_after"] - equal["grade_before"]
    assert comparison.says(f"the answers of three such trainings get {at_half:.2f} grades more")
    wins = np.mean(TABLE["gain"] > 0)
    assert comparison.says(f"the judge's {wins:.0%} and the reader's {equal['win_rate']:.0%}")
    assert comparison.answer("worse").startswith(f"{100 * (TABLE['gain'] < 0).mean():.1f}.")
    for label in ("training judge", "evaluating judge"):
        assert label in comparison.shown("21587908")
    one, other = ((TABLE[key] > 0).mean() for key in ("gain", "second_gain"))
    assert f"agree on {one * other + (1 - one) * (1 - other):.0%}.)" in comparison.shown("1b8b92da")


def test_the_two_gains_of_one_policy_are_reconciled(comparison: Notebook) -> None:
    training = Notebook("05")
    assert "+0.82 (+0.68 to +0.97)" in training.shown("prediction")
    assert "48%" in training.shown("signs-table")
    ended = TABLE["response_before"].map(ends_in_sentence).mean()
    assert comparison.says(
        "0.82 (0.68 to 0.97), on 96 *validation* prompts",
        f"48% of the untouched policy's answers happened to end, and {ended:.0%} here",
    )


def test_what_is_said_of_single_answers_is_true_of_them(comparison: Notebook) -> None:
    ended = {w: TABLE[f"response_{w}"].map(ends_in_sentence) for w in ("before", "after")}
    five = TABLE.sample(5, random_state=0).index
    shorter = [
        len(words(TABLE["response_after"][i])) < len(words(TABLE["response_before"][i]))
        for i in five
    ]
    assert sum(shorter) == 3 and ended["before"][five].all() and sum(~ended["after"][five]) == 1
    assert comparison.says("Three of the five got shorter, and one is cut off where it wasn't")
    assert sum(TABLE["response_after"][five].str.startswith("No,")) == 2
    newly, no_more = ended["after"] & ~ended["before"], ended["before"] & ~ended["after"]
    assert newly[TABLE["gain"].nlargest(5).index].all()
    assert no_more.sum() == 3 and no_more[TABLE["gain"].nsmallest(3).index].all()
    assert (~ended["after"]).sum() == 12 and comparison.says("the 12 that are still cut off")
    assert f"{TABLE.nlargest(5, 'score_after')['gain'].mean():.2f}" == "1.55"
    assert comparison.says("Their mean gain is 1.55, nearly three times the 0.56 of all")
    gains = comparison.shown("worst").split("five largest losses")[0]
    assert "Best first car under $8000 for a teenager" in gains and "Tesla Model Y" in gains
    assert comparison.says("names a Tesla Model Y as the best first car under $8000")


def test_the_signs_are_as_said(comparison: Notebook) -> None:
    signs = comparison.shown("signs")
    for label, before, after in (
        ("answers that end in a sentence", "56.2%", "90.6%"),
        ("answers that begin with yes or no", "6.2%", "14.1%"),
        ("prompt's words that come back at the start", "38.6%", "47.4%"),
        ("share of the most common opening", "2.3%", "3.1%"),
    ):
        assert re.search(rf"(?m)^{label} +{before} +{after}(?!\S)", signs), label
    sure = re.findall(r"(?m)^(answers that begin|prompt's words).* \+(\S+)% to \+(\S+)%\s*$", signs)
    assert len(sure) == 2 and all(float(low) > 0 for _, low, _ in sure)
    distinct = re.search(r"distinct-2 of the starts +(\S+) +(\S+)", signs)
    assert distinct and float(distinct[2]) > float(distinct[1])
    assert comparison.says(
        "91 answers in 100 end, where 56 did",
        "the most common opening has 3 answers in 100",
        "repeat 47% of the prompt's words, not 39%, and twice as many answers begin with yes",
        "But two more signs have moved, by more than the noise",
    )
    assert comparison.answer("flattery").startswith("below.")
    assert comparison.answer("sixteen-checks").startswith(
        "2. The win rate of this one policy is 62%"
    )


def test_the_temperatures_and_what_decoding_gives_are_as_said(comparison: Notebook) -> None:
    reading = json.loads((RESULTS / "reading.json").read_text("utf-8"))
    assert reading["temperatures"] == {"untouched": 0.3, "default-0": 0.3, "long": 0.01}
    assert comparison.says(
        "**0.3 for the untouched policy and for the default run, greedy for the long run.**",
        f"rose from {mean_grade('untouched, temperature 1'):.2f} to {mean_grade('untouched'):.2f}",
        f"gets {mean_grade('untouched, best'):.2f} at 0.3, {mean_grade('untouched'):.2f} at 0.5 "
        f"and {mean_grade('untouched, greedy'):.2f} greedily",
        f"{mean_grade('long, best'):.2f} greedily and {mean_grade('long'):.2f} at 0.5",
    )
    default = np.mean([mean_grade(source) for source in OWN])
    assert f"{mean_grade('long'):.2f}" == f"{default:.2f}"
    greedy = default - mean_grade("untouched, greedy")
    assert comparison.says(f"the gain is {greedy:.2f}")
    long = mean_grade("long, best") - mean_grade("untouched, best")
    assert comparison.says(f"The long run gains {long:.2f}.")
    assert comparison.answer("reading-load-pairs").startswith("53.1.")
    assert comparison.says("It has the untouched policy's, 0.3, where the long run")
    sources = load_script("reading").test_sources(reading["temperatures"])
    assert sources["fine-tuned"].temperature == reading["temperatures"]["untouched"] == 0.3
    assert comparison.answer("reading-grades").startswith("4.")
    assert all(a["grade"] <= 1 for row in READING for a in row["answers"] if not a["ended"])


def test_what_the_gain_is_made_of_is_as_said(comparison: Notebook) -> None:
    for pair, gain, low, high, said in (
        (("untouched, best", OWN), 0.10, -0.20, 0.39, "gains 0.10 at 0.3 and 0.26 at 0.5"),
        (("untouched", SEEDS), 0.26, -0.01, 0.54, "each with an interval that holds 0"),
        (("untouched, best", ["long, best"]), 0.51, 0.15, 0.86, "0.51 (0.15 to 0.86)"),
        (("untouched", ["long"]), 0.26, -0.07, 0.59, "At 0.5 it gains 0.26 there, like"),
    ):
        found = gain_where_both_ended(READING, *pair)
        assert [found["mean_gain"], *found["mean_gain_interval"]] == pytest.approx(
            [gain, low, high], abs=0.005
        )
        assert comparison.says(said)
    judge = gain_where_both_ended(READING, "untouched, best", OWN, "first")
    assert judge["n"] == 60 and f"{judge['mean_gain']:.2f}" == "0.24"
    assert comparison.says("gives the default run 0.24 and the reader 0.10", "These 60 prompts")
    shown = comparison.shown("by-ending")
    (content,) = re.findall(r"default run, both at 0.3 +\+0.22 \((\S+) to (\S+)\)", shown)
    assert float(content[0]) < 0 < float(content[1])
    parts = gain_by_ending(READING, "untouched, best", ["long, best"], resamples=1)
    share = parts["by_content"] / (parts["by_content"] + parts["by_ending"])
    assert 0.43 < share < 0.5 and comparison.says("nearly half of its gain is content")
    ended = compare_sources(READING, "untouched, best", ["untouched, first sentence"])
    newly = (ended["ended_after"] - ended["ended_before"]) / (1 - ended["ended_before"])
    assert 0.45 < newly < 0.55 and comparison.says("about half of the answers that were cut off")


def test_the_levers_and_controls_are_as_said(comparison: Notebook) -> None:
    first = mean_grade("untouched, first sentence")
    assert comparison.answer("lever-grades").startswith(f"{first:.2f}. About half of the way.")
    untouched, default = mean_grade("untouched, best"), np.mean([mean_grade(s) for s in OWN])
    assert comparison.says(f"a mean grade of {untouched:.2f}, and PPO's default run {default:.2f}")
    (levers,) = (cell.source for cell in comparison.cells if cell.id == "levers")
    assert "two_way_interval(each)" in levers and comparison.says("over its three seeds as well")
    nothing, asked, colder, both = (
        mean_grade(f"untouched, {how}")
        for how in ("no prompt, temperature 1", "temperature 1", "no prompt", "best")
    )
    assert f"{both - nothing:.1f}" == "1.0" and comparison.says(
        f"the system message adds {asked - nothing:.2f} and the temperature {colder - nothing:.2f}",
        "together they add a whole grade",
    )
    default = np.mean([mean_grade(source) for source in OWN])
    share = (mean_grade("untouched, first sentence") - both) / (default - both)
    assert 0.45 < share < 0.55 and comparison.says("about half of PPO's gain")
    wins = {
        (control, who): compare_sources(READING, control, after)
        for control in (
            "untouched, first sentence",
            "untouched, until it ends",
            "untouched, best of 4",
            "untouched, greedy",
            "fine-tuned",
        )
        for who, after in (("default", OWN), ("long", ["long, best"]))
    }
    first, again = (
        wins[f"untouched, {how}", "default"] for how in ("first sentence", "until it ends")
    )
    assert comparison.says(
        f"wins {first['win_rate']:.0%} of the pairs against the first sentence only and "
        f"{again['win_rate']:.0%} against a second try, with intervals above 50%"
    )
    above = {pair for pair, found in wins.items() if found["win_rate_interval"][0] > 0.5}
    assert {pair for pair in wins if pair not in above} == {
        ("untouched, best of 4", "default"),
        ("fine-tuned", "default"),
        ("fine-tuned", "long"),
    }
    gains = {
        (who, key): gains_of(READING, "untouched, best", after, key)
        for who, after in (("default", OWN), ("long", ["long, best"]))
        for key in ("grade", "first", "second")
    }
    said = {pair: f"{found['mean_gain']:.2f}" for pair, found in gains.items()}
    assert comparison.says(
        f"{said['default', 'first']} and {said['default', 'second']} where the reader says "
        f"{said['default', 'grade']}",
        f"the reader says {said['long', 'grade']}, the judges {said['long', 'first']} and "
        f"{said['long', 'second']}",
    )
    of_prompt = [{a["source"]: a for a in row["answers"]} for row in READING]
    apart = {}
    for who, after in (("default", OWN), ("long", ["long, best"])):
        gained = [
            np.array([
                np.mean([a[s][key] for s in after]) - a["untouched, best"][key] for a in of_prompt
            ])
            for key in ("grade", "first")
        ]  # fmt: skip
        mean, error = paired_difference(*gained)
        apart[who] = f"{mean:.2f} ± {error:.2f}"
        assert f"{who} run, reader minus training judge: {apart[who]}" in comparison.shown(
            "predicted-apart"
        )
    assert comparison.says(f"for the training judge that's {apart['long']} too little")
    for key in ("grade", "first", "second"):
        seeds, (low, high) = (
            gains["default", key][x] for x in ("gain_by_seed", "mean_gain_interval")
        )
        assert max(seeds) - min(seeds) < high - low


@pytest.fixture(scope="module")
def perplexity() -> Notebook:
    return Notebook("07")


PERPLEXITY = json.loads((RESULTS / "perplexity.json").read_text("utf-8"))


def pooled(when: str, measure: str) -> float:
    values = np.array(PERPLEXITY[when][measure]["perplexities"])
    tokens = np.array(PERPLEXITY[when][measure]["tokens"])
    return float(np.exp((tokens * np.log(values)).sum() / tokens.sum()))


def test_every_perplexity_rose_by_what_is_said(perplexity: Notebook) -> None:
    rises = {
        measure: pooled("after", measure) / pooled("before", measure) - 1
        for measure in PERPLEXITY["before"]
    }
    whole, reply, sampled = rises.values()
    assert perplexity.says(
        f"whole texts by {whole:.0%}, replies by {reply:.0%}, replies as sampled by {sampled:.0%}",
        f"a predictor of decent answers: {reply:.0%} on replies at temperature 1",
        f"What's left of the {reply:.0%} then",
    )
    before, after = (
        np.array(PERPLEXITY[when]["last_reply"]["perplexities"]) for when in ("before", "after")
    )
    assert perplexity.answer("better").startswith(f"{(after < before).sum()}. Of {len(before)}.")
    shown = perplexity.answer("table")
    assert shown.startswith("up. 47.5 → 59.3, +25%, with an interval of +23.0% to +26.6%")
    assert perplexity.says(
        "one of 2 tokens with a perplexity of 1,000 and one of 98 tokens with 10"
    )
    values, tokens = np.array([1000.0, 10.0]), np.array([2, 98])
    one = np.exp((tokens * np.log(values)).sum() / 100)
    assert perplexity.says(f"texts is {values.mean():.0f}, the pooled perplexity {one:.0f}.")
    assert perplexity.answer("first-token").startswith("less.")
    assert perplexity.answer("sharper-answer").startswith("more expensive.")


def test_where_the_change_sits_and_how_high_the_bar_is(perplexity: Notebook) -> None:
    shown = perplexity.shown("where-shown")
    changes = {
        name: [part.split() for part in re.findall(rf"(?m)^{name} {{2,}}(.+?)\s*\\?$", shown)]
        for name in ("the first sentence", "the token after it", "the rest")
    }
    summed = {name: float(parts[1][0]) for name, parts in changes.items()}
    per_token = {name: float(parts[0][4]) for name, parts in changes.items()}
    tokens = {name: int(parts[0][1]) for name, parts in changes.items()}
    assert perplexity.answer("where-answer").startswith(f"{max(summed, key=summed.__getitem__)}.")
    assert per_token["the token after it"] > 10 * per_token["the first sentence"]
    assert per_token["the rest"] <= per_token["the first sentence"]
    assert 55 < sum(tokens.values()) / tokens["the token after it"] < 65
    next_one, whole = summed["the token after it"], sum(summed.values())
    assert perplexity.says(f"it's {next_one:.0f} of {whole:.0f} nats, a sixth")
    assert 1 / 6.5 < next_one / whole < 1 / 5.5
    scores = committed_overoptimisation()[0]["gold"]
    bars = 0.05 * np.log(np.exp(scores / 0.05).mean(axis=1, keepdims=True))
    above = scores > bars
    assert perplexity.says(
        f"{scores.shape[1]} answers of the untouched policy to each of {len(scores)}"
    )
    assert perplexity.answer("above-bar").startswith(f"{100 * above.mean():.1f}. ")
    fewer = []
    for k in (2, 4, 8):
        few = scores[:, :k]
        bar = 0.05 * np.log(np.exp(few / 0.05).mean(axis=1, keepdims=True))
        assert ((few > bar).any(axis=1) == (np.ptp(few, axis=1) > 0)).all(), "the best of them is"
        fewer.append(f"{100 * (few > bar).mean():.0f}%")
    assert f"a prompt it would be {', '.join(fewer)}; with" in perplexity.answer("above-bar")
    assert f"{per_token['the rest']:+.2f} nats per token, where that has " in perplexity.prose
    assert f"where that has {per_token['the first sentence']:+.2f}." in perplexity.prose


def test_rows_of_colours_that_are_compared_have_one_scale() -> None:
    several = 0
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "token_heatmap" not in cell.source:
                continue
            for call in ast.walk(ast.parse(cell.source)):
                if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("token_heatmap"):
                    rows = call.args[1]
                    if isinstance(rows, ast.Dict) and len(rows.keys) == 1:
                        continue
                    several += 1
                    scaled = len(call.args) > 2 or "scale" in {k.arg for k in call.keywords}
                    assert scaled, f"{path.name}, cell {cell.id}"
    assert several == 2, "those of notebooks 04 and 07"


def test_the_validation_grades_beside_the_long_runs_content_are_those_of_the_sheets(
    comparison: Notebook,
) -> None:
    def grade(sheet: str, source: str) -> str:
        rows = load_feedback(resolve(Bundled("feedback")) / f"temperatures-{sheet}.jsonl")
        grades = [a["grade"] for row in rows for a in row["answers"] if a["source"] == source]
        assert len(grades) == 96
        return f"{np.mean(grades):.2f}"

    long, default, greedy = (
        grade("long", "long at 0.01"),
        grade("default", "default-0 at 0.3"),
        grade("default", "default-0 at 0.01"),
    )
    assert long == default and comparison.says(f"the long run's greedy answers had {long}")
    tuning = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    assert f"the long run has {long} greedily, one default run {default} at 0.3" in tuning
    assert f"and {greedy} greedily" in tuning
