"""What notebook 10 says in numbers, against the committed study of simulated readers."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import nbformat
import numpy as np
from support import ROOT
from support.notebooks import outputs_and_prose, row

from rlhf_tutorial.human.judge import COMPONENTS, VARIANCES
from rlhf_tutorial.human.readers import short_and_concrete
from rlhf_tutorial.human.study import (
    FROM_COURSE,
    committed_curves,
    committed_steering,
    labels_needed,
)

CELLS = nbformat.read(ROOT / "notebooks" / "10_you_are_the_human.ipynb", as_version=4).cells
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")

WAYS = ("random", "active, weights", "active, pairs")
TASTES_IN_ORDER = ("short and concrete", "warm and personal", "names a number")


def results(what: str) -> list[dict[str, Any]]:
    """The results of one kind that `scripts/human.py` left in the package."""
    folder = ROOT / "rlhf_tutorial" / "bundled" / "human"
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{what}_*.json"))]


def agreement(taste: str, way: str, labels: int) -> float:
    """The mean over the seeds."""
    seeds = committed_curves()[taste][way]
    found = [row["agreement"] for seed in seeds for row in seed if row["labels"] == labels]
    assert len(found) == 5
    return float(np.mean(found))


def test_what_is_said_of_each_taste_is_what_its_curves_show() -> None:
    def lead(taste: str, labels: int, way: str = "active, weights") -> float:
        return agreement(taste, way, labels) - agreement(taste, "random", labels)

    others = ("short and concrete", "names a number")
    assert all(lead("warm and personal", 40) > lead(taste, 40) for taste in others)
    assert round(100 * lead("warm and personal", 80)) == 9
    assert "gains most, nine points still at 80 labels" in PROSE
    assert all(abs(lead("short and concrete", n)) < 0.02 for n in range(40, 201, 10))
    assert "the lines lie on each other" in PROSE
    assert lead("names a number", 20) > 0.1 and abs(lead("names a number", 60)) < 0.005
    assert "has lost its lead at 60 labels" in PROSE
    assert all(lead("names a number", n, "active, pairs") > 0.01 for n in range(40, 201, 10))
    assert "its rival, which asks about other pairs, keeps one" in PROSE


def test_what_the_courses_judge_is_worth_as_a_beginning() -> None:
    def over_tastes(way: str, labels: int) -> float:
        return float(np.mean([agreement(taste, way, labels) for taste in TASTES_IN_ORDER]))

    begun, alone = ([over_tastes(way, n) for n in (40, 80, 200)] for way in (FROM_COURSE, "random"))
    told = f"in {begun[0]:.0%} of held-out pairs after 40 labels, and in {begun[1]:.0%} after 80"
    assert told in PROSE
    assert f"with nothing do so in {alone[0]:.0%} and {alone[1]:.0%}" in PROSE
    assert abs(begun[2] - alone[2]) < 0.01 and "After 200 labels the two are even" in PROSE


def test_the_labels_needed_are_told_as_the_table_has_them() -> None:
    def needed(taste: str, way: str, share: float) -> list[float]:
        curves = committed_curves()[taste][way]
        return [labels_needed(curve, share) or np.inf for curve in curves]

    for taste, active, at_random in zip(TASTES_IN_ORDER, (40, 70, 20), (60, 160, 50), strict=True):
        assert np.median(needed(taste, "active, weights", 0.7)) == active
        assert np.median(needed(taste, "random", 0.7)) == at_random
    assert "40 to the first mark in place of 60, 70 in place of 160, 20 in place of 50" in PROSE
    never = np.isinf(needed("names a number", "active, weights", 0.7))
    assert never.sum() == 1 and "with one seed of “names a number” it never gets there" in PROSE
    warm = {way: needed("warm and personal", way, 0.75) for way in WAYS}
    assert [int(np.isfinite(warm[way]).sum()) for way in WAYS] == [0, 1, 0]
    assert "gets there once in five, by the formula" in PROSE


def test_the_judge_is_as_it_is_told() -> None:
    assert COMPONENTS == 64 and "there are 64 weights" in PROSE
    assert len(VARIANCES) == 11 and "the fit tries eleven" in PROSE


SHOWN, _ = outputs_and_prose("10_you_are_the_human.ipynb")


def numbers(cell: str, name: str) -> list[float]:
    return row(SHOWN[cell], name)


def by(start: str) -> str:
    (found,) = (cell.id for cell in CELLS if cell.source.startswith(start))
    return found


def test_the_first_round_is_told_as_it_went() -> None:
    habits = by("table = habits(asked")
    assert numbers(habits, "words") == [21.9, 8.6]
    assert "8.6 words where it said 21.9" in PROSE
    veil = SHOWN[by("judges = {")]
    assert "16 went to the trained policy, 3 to the untouched one, and 1 were ties" in veil
    assert "82% (95% interval 61% to 93%)" in veil and "goes from 61% to 93%" in PROSE
    assert "Your own judge agreed with you 18 of 19 times" in veil
    assert "The course's judge agreed with you 12 of 19 times" in veil
    assert "in 18 of 19 choices" in PROSE and "of this taste, in 12" in PROSE
    said = SHOWN[by('pd.DataFrame({"prompt": asked, "before": before, "after"')]
    for answer in ("No.", "I'm sorry to interrupt."):
        assert answer in said and f"“{answer}”" in PROSE


def test_why_no_wins_the_judge_and_not_the_reader() -> None:
    trick = SHOWN[by("trick = max(after")]
    assert "'No.' is the answer to 5 of 48 prompts" in trick and "five prompts of 48" in PROSE
    assert "85% of the time, the judge says" in trick and "choose it 85% of the time" in PROSE
    assert short_and_concrete("No no.") < short_and_concrete("No no no " * 20)


def test_twelve_labels_change_what_is_said_and_not_what_wins() -> None:
    second = SHOWN[by("_, later = answers_of")]
    assert "first round: 'No.' 5 times; 7 answers of one or two words" in second
    assert "second round: 'No.' 0 times; 2 answers of one or two words" in second
    assert "of seven answers of one or two words two are left" in PROSE
    assert numbers(by("_, later = answers_of"), "words") == [21.9, 8.6, 21.9, 11.44]
    assert "three words more in the mean" in PROSE
    verdict = SHOWN[by("verdict = pd.DataFrame")]
    assert [round(100 * x) for x in numbers(by("verdict = pd.DataFrame"), "win_rate")] == [82, 80]
    assert "[0.708333, 0.916667]  [0.6875, 0.90625]" in verdict and "82% and 80%" in PROSE
    said = SHOWN[by('pd.DataFrame({"prompt": asked, "before": before, "second round"')]
    for answer in re.findall(r"“([^”]+\.)” ", PROSE.split("Now read what the winner says:")[1]):
        assert answer in said


def test_fifteen_trainings_are_told_as_they_ended() -> None:
    table, short, warm, number = committed_steering(), *TASTES_IN_ORDER

    def interval(taste: str, way: str = "first round") -> str:
        found = table.loc[(taste, way)]
        return f"{found['win_rate']:.0%} ({found['low']:.0%} to {found['high']:.0%})"

    trained = table.xs("first round", level=1)
    assert trained["seeds"].tolist() == [5, 5, 5]
    assert (trained["win_rate"] >= 0.65).tolist() == [True, True, False]
    assert f"“Short and concrete”** wins {interval(short)}" in PROSE
    assert f"at least {trained['worst'][short]:.0%} with every seed" in PROSE
    assert f"no less than before ({trained['gain'][short]:+.2f})" in PROSE
    assert trained["gain"][short] > 0 and trained["opening"][short] < 0.15
    assert f"have {trained['words'][short]:.0f} words" in PROSE
    assert f"the same judge wins {interval(short, 'best of 4')} without training" in PROSE
    assert f"“Warm and personal”** wins {interval(warm)}" in PROSE
    assert f"“Names a number”** stays at {interval(number)}" in PROSE
    assert f"to {trained['kl'][number]:.0f} nats and not much further" in PROSE
    told = [result["told"] for result in results("steer") if result["taste"] == number]
    assert f"only {min(told)} to {max(told)} choices" in PROSE
    pushed = table.loc[(short, "at the preset's KL weight")]
    assert f"“short and concrete” wins {pushed['win_rate']:.0%}" in PROSE


def test_one_sentence_for_everybody_wins_most() -> None:
    warm = [result for result in results("steer") if result["taste"] == "warm and personal"]
    commonest = [Counter(result["after"]["answers"]).most_common(1)[0] for result in warm]
    same = [r for r, (_, count) in zip(warm, commonest, strict=True) if count > 64]
    kls = [np.mean(result["after"]["kl"]) for result in same]
    assert f"In {('one', 'two', 'three', 'four')[len(same) - 1]} of five trainings" in PROSE
    assert f"{min(kls):.0f} to {max(kls):.0f} nats in those trainings" in PROSE
    assert all(np.mean(r["after"]["kl"]) < min(kls) for r in warm if r not in same)
    others = " and ".join(f"{r['win_rate']:.0%}" for r in warm if r not in same)
    assert f"In the other two it still answers, and wins {others}" in PROSE
    for r in same:
        gain = np.subtract(r["after"]["scores"]["course"], r["before"]["scores"]["course"])
        assert gain.mean() < -0.3, "the course's judge tells it, too"
    best = max(range(len(warm)), key=lambda n: warm[n]["win_rate"])
    sentence, count = commonest[best]
    assert max(r["win_rate"] for r in results("steer")) == warm[best]["win_rate"]
    assert f"The highest win rate of all, {warm[best]['win_rate']:.0%}, belongs to" in PROSE
    assert f"“{sentence}” as the answer to {count} of 128 prompts" in PROSE
    (pushed,) = (r for r in results("pushed") if r["taste"] == "short and concrete")
    sentence, count = Counter(pushed["after"]["answers"]).most_common(1)[0]
    assert f"“{sentence}” as the answer to {count} prompts of 128" in PROSE


def test_the_leash_is_told_as_it_held() -> None:
    """What `steering.LEASH` and section 4 say of it."""
    own, course = (
        [np.std(result["before"]["scores"][judge], ddof=1) for result in results("steer")]
        for judge in ("own", "course")
    )
    assert 1.6 < np.mean(own) / np.mean(course) < 2
    assert "vary nearly twice as much as those of the course's judge" in PROSE
    below: dict[str, list[bool]] = {taste: [] for taste in TASTES_IN_ORDER}
    for result in results("steer"):
        below[result["taste"]].append(bool(np.mean(result["after"]["kl"]) < 10))
    assert [sum(below[taste]) for taste in TASTES_IN_ORDER] == [5, 2, 5]
