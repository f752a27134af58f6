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

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.compare import load_table
from rlhf_tutorial.evaluation.measures import ends_in_sentence, words
from rlhf_tutorial.evaluation.reading import compare_sources, gain_by_ending
from rlhf_tutorial.exercises import EXERCISES
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.presets import PRESETS
from rlhf_tutorial.studies.committed import committed_trainings
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
        told = "\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")
        self.prose = " ".join(told.split())

    def shown(self, cell: str) -> str:
        """A cell's outputs as text; of a guess the answer and the reason."""
        (outputs,) = (c.outputs for c in self.cells if c.id == cell)
        (text,) = (
            str(out.get("text") or out.data.get("text/markdown") or out.data["text/plain"])
            if "<details>" not in (html := out.get("data", {}).get("text/html", ""))
            else re.sub("<[^>]+>", "", html.split("</summary>")[1])
            for out in outputs
        )
        return text

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
    assert done == 1 and training.shown("done").startswith("Done after steps 11 to 20: 1.68")
    assert f"{left[1] - left[0]:.2f}" == "0.17"
    assert 45 < 100 * 0.05 * (kl[-1] - kl[0]) / rise < 55 and training.says(
        "half of the rise was paid back as KL penalty"
    )
    falls = int((np.diff(LOG["ppo/mean_scores"]) < 0).sum())
    assert training.shown("falls").startswith(f"{falls}. Of 39.")


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
    assert training.shown("weak").startswith(
        f"value head. Steps outside the band, of 40: KL 0, clip 0, value head {(smooth < 0).sum()}."
    )
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
    assert found == [("1.28", "0.82"), ("1.21", "0.61")]
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
    told = training.shown("long-answer")
    assert told.startswith(f"{more:.3g}. {ends[3]} against {', '.join(ends[:3])}.")
    lead = np.subtract(
        *(t["looks"][-1]["scores"]["first"] for t in (trainings["long, seed 0"], seeds[0]))
    )
    assert f"{lead.mean():.2f}" == "0.13" and 1.7 < lead.mean() / (lead.std(ddof=1) / 96**0.5) < 2.3
    assert training.says("only 0.13 above the best seed, about two standard errors")
    assert training.says(
        f"the untouched policy has {TABLE['score_before'].mean():.2f}, the run above gains "
        f"{TABLE['gain'].mean():.2f} (notebook 06)"
    )
    assert training.says(f"with other prompts, and finds {TABLE['gain'].mean():.2f}")
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
BEST = [f"default-{seed}, best" for seed in range(3)]


def test_the_gain_is_that_of_the_table_and_of_the_reader(comparison: Notebook) -> None:
    found = compare_sources(READING, "untouched, best", BEST)
    gain = found["grade_after"] - found["grade_before"]
    assert comparison.says(
        f"{TABLE['gain'].mean():.2f} grades more by the judge that trained it",
        f"and {TABLE['second_gain'].mean():.2f} more by a judge that it never met",
        f"the answers of three such trainings {gain:.2f} grades more",
        f"{100 * found['acceptable_after']:.0f} of its answers in 100 have a 3 or better, where "
        f"{100 * found['acceptable_before']:.0f} had",
    )
    assert 0.74 < found["win_rate"] < 0.77 and comparison.says("wins three pairs in four")
    parts = gain_by_ending(READING, "untouched, best", BEST, resamples=1)
    share = 100 * parts["by_ending"] / gain
    assert comparison.shown("ending").startswith(f"{share:.1f}.")
    equal = compare_sources(READING, "untouched", [f"default-{seed}" for seed in range(3)])
    wins = np.mean(TABLE["gain"] > 0)
    assert comparison.says(f"the judge's {wins:.0%} and the reader's {equal['win_rate']:.0%}")


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
    both = ended["before"] & ended["after"]
    assert (TABLE["gain"][newly] > 0).all()
    assert comparison.says(
        f"it gains {TABLE['gain'][newly].mean():.2f}, and not one of these {newly.sum()} prompts",
        f"{both.sum()} prompts, the gain is {TABLE['gain'][both].mean():.2f}, and a third",
    )
    assert 0.3 < (TABLE["gain"][both] < 0).mean() < 0.37
    assert (~ended["after"]).sum() == 12 and comparison.says("the 12 that are still cut off")
    assert f"{TABLE.nlargest(5, 'score_after')['gain'].mean():.2f}" == "1.55"
    assert comparison.says("Their mean gain is 1.55, nearly three times the 0.56 of all")


def test_the_signs_and_levers_are_as_said(comparison: Notebook) -> None:
    signs = comparison.shown("signs")
    for label, before, after in (
        ("answers that end in a sentence", "56.2%", "90.6%"),
        ("answers that begin with yes or no", "6.2%", "14.1%"),
        ("different openings, per 100 answers", "91", "93"),
        ("share of answers that begin with it", "2.3%", "3.1%"),
    ):
        assert re.search(rf"(?m)^{label} +{before} +{after}$", signs), label
    assert comparison.says("91 answers in 100 end, where 56 did", "twice as many begin with yes")
    assert "+5.8 percentage points" in comparison.shown("signs-verdict")
    assert comparison.shown("flattery").startswith("below.")
    assert comparison.shown("lever-grades").startswith("fine-tuned.")
    assert comparison.shown("sixteen-checks").startswith("2.")
    assert "0.41 to 0.71 (paired)" in comparison.shown("paired")
    assert "0.38 to 0.73 (as if unpaired)" in comparison.shown("paired")
    assert comparison.says("is 0.30 wide, the other 0.35: a sixth", "62% in one check and 94%")
    assert comparison.says("0.72 and 0.63 where the reader says 0.77", "the judges 0.87 and 0.70")
    controls = comparison.shown("controls")
    assert "60.2% (52.5%" in controls and "58.7% (50.9%" in controls
    assert comparison.says("60% and 59% of the pairs, by intervals above 50%")


@pytest.fixture(scope="module")
def perplexity() -> Notebook:
    return Notebook("07")


PERPLEXITY = json.loads((RESULTS / "perplexity.json").read_text("utf-8"))


def averages(when: str, measure: str) -> tuple[float, float, float]:
    """Of a measure's perplexities: mean over texts, pooled, geometric mean."""
    values = np.array(PERPLEXITY[when][measure]["perplexities"])
    tokens = np.array(PERPLEXITY[when][measure]["tokens"])
    logs = np.log(values)
    return values.mean(), np.exp((tokens * logs).sum() / tokens.sum()), np.exp(logs.mean())


def test_every_perplexity_rose_by_what_is_said(perplexity: Notebook) -> None:
    rises = {
        measure: [
            after / before - 1
            for before, after in zip(
                averages("before", measure), averages("after", measure), strict=True
            )
        ]
        for measure in PERPLEXITY["before"]
    }
    said = {"whole_text": (0.11, 0.11), "last_reply": (0.25, 0.28)}
    said["last_reply_as_sampled"] = (0.79, 1.03)
    assert {m: (round(min(r), 2), round(max(r), 2)) for m, r in rises.items()} == said
    assert perplexity.says(
        "rises by 25% (pooled)", "Whole texts rose by 11%, replies by 25% to 28%"
    )
    assert perplexity.says("as sampled by 79% to 103%", "cost 25% on replies at temperature 1")
    before, after = (
        np.array(PERPLEXITY[when]["last_reply"]["perplexities"]) for when in ("before", "after")
    )
    assert perplexity.shown("better").startswith(f"{(after < before).sum()}. Of {len(before)}.")
    mean, pooled, _ = averages("before", "last_reply")
    keep = np.argsort(before)[:-4]
    tokens = np.array(PERPLEXITY["before"]["last_reply"]["tokens"])[keep]
    fewer = before[keep].mean()
    pool = np.exp((tokens * np.log(before[keep])).sum() / tokens.sum())
    assert perplexity.says(
        f"from {mean:.1f} to {fewer:.1f}, the pooled one from {pooled:.1f} to {pool:.1f}",
        f"carried {1 - fewer / mean:.0%} of the mean and {1 - pool / pooled:.0%} of the pool",
    )


def test_where_the_change_sits_and_how_high_the_bar_is(perplexity: Notebook) -> None:
    shown = perplexity.shown("where-shown")
    changes = {
        name: [part.split() for part in re.findall(rf"(?m)^{name} {{2,}}(.+?)\s*\\?$", shown)]
        for name in ("the first sentence", "the token after it", "the rest")
    }
    summed = {name: float(parts[1][0]) for name, parts in changes.items()}
    per_token = {name: float(parts[0][4]) for name, parts in changes.items()}
    tokens = {name: int(parts[0][1]) for name, parts in changes.items()}
    assert perplexity.shown("where-answer").startswith(f"{max(summed, key=summed.__getitem__)}.")
    assert per_token["the token after it"] > 10 * per_token["the first sentence"]
    assert per_token["the rest"] <= per_token["the first sentence"]
    assert 55 < sum(tokens.values()) / tokens["the token after it"] < 65
    next_one, whole = summed["the token after it"], sum(summed.values())
    assert perplexity.says(f"it's {next_one:.0f} of {whole:.0f} nats, a sixth")
    assert 1 / 6.5 < next_one / whole < 1 / 5.5
    scores = TABLE["score_before"].to_numpy()
    bar = 0.05 * np.log(np.mean(np.exp(scores / 0.05)))
    assert perplexity.shown("above-bar").startswith(f"{(scores > bar).sum()}. Of 128. The bar is")
    assert f"The bar is at {bar:.2f}" in perplexity.shown("above-bar")
    assert "1.43 before, 1.99 after" in perplexity.shown("headline")


def test_two_texts_have_three_averages(perplexity: Notebook) -> None:
    values, tokens = np.array([1000.0, 10.0]), np.array([2, 98])
    pooled = np.exp((tokens * np.log(values)).sum() / 100)
    assert perplexity.says(
        f"the mean over texts is {values.mean():.0f}, the geometric mean "
        f"{np.exp(np.log(values).mean()):.0f}, the pooled perplexity {pooled:.0f}."
    )
    assert perplexity.shown("first-token").startswith("less.")
    assert perplexity.shown("table-1").startswith("18.1.")
    assert perplexity.shown("sharper-answer").startswith("dearer.")


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
