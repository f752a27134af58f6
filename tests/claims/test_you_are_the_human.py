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

from rlhf_tutorial.evaluation.intervals import paired_difference
from rlhf_tutorial.evaluation.measures import words
from rlhf_tutorial.human.judge import COMPONENTS, VARIANCES
from rlhf_tutorial.human.readers import short_and_concrete
from rlhf_tutorial.human.study import (
    FROM_COURSE,
    committed_curves,
    committed_steering,
    labels_needed,
    wins,
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


def agreement_of(curve: Any, labels: int) -> float:
    (found,) = (row["agreement"] for row in curve if row["labels"] == labels)
    return float(found)


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
    costs = [
        100 * (agreement_of(without, 80) - agreement_of(begun_so, 80))
        for taste in TASTES_IN_ORDER
        for without, begun_so in zip(
            *(committed_curves()[taste][way] for way in ("random", FROM_COURSE)), strict=True
        )
    ]
    large = sorted(cost for cost in costs if cost > 5)
    assert len(large) == 3 and len(costs) == 15 and np.median(costs) < 1
    assert f"in three it costs {large[0]:.0f} to {large[-1]:.0f} points at 80 labels" in PROSE
    for n, *shares in zip((40, 80, 200), alone, begun, strict=True):
        assert numbers("begin", str(n)) == [round(share, 2) for share in shares]


def test_the_labels_needed_are_told_as_the_table_has_them() -> None:
    def needed(taste: str, way: str, share: float) -> list[float]:
        curves = committed_curves()[taste][way]
        return [labels_needed(curve, share) or np.inf for curve in curves]

    for taste, active, at_random in zip(TASTES_IN_ORDER, (40, 70, 20), (60, 160, 50), strict=True):
        assert np.median(needed(taste, "active, weights", 0.7)) == active
        assert np.median(needed(taste, "random", 0.7)) == at_random
    assert "40 to the first mark in place of 60, 70 in place of 160, 20 in place of 50" in PROSE
    never = np.isinf(needed("names a number", "active, weights", 0.7))
    assert never.sum() == 1
    assert "with one seed of “names a number” the formula never gets there" in PROSE
    short, warm, number = (
        [int(np.isfinite(needed(taste, way, 0.75)).sum()) for way in WAYS]
        for taste in TASTES_IN_ORDER
    )
    told = "in {} of those of “names a number”, in {} of “short and concrete”, and in {} of"
    assert told.format(sum(number), sum(short), sum(warm)) in PROSE
    assert warm == [0, 1, 0] and "“warm and personal”, one in the formula's order" in PROSE


def test_how_sure_the_ninety_labels_are() -> None:
    """Draw the five seeds of each taste anew: where does the random order reach the formula?"""
    curves, random, found = committed_curves(), np.random.default_rng(0), []
    counts = np.array([row["labels"] for row in curves[TASTES_IN_ORDER[0]]["random"][0]])
    by_way = {
        way: np.array(
            [[[r["agreement"] for r in seed] for seed in curves[t][way]] for t in TASTES_IN_ORDER]
        )
        for way in ("random", "active, weights")
    }
    for _ in range(2000):
        seeds = random.integers(0, 5, (3, 5))
        mean = {way: of[np.arange(3)[:, None], seeds].mean((0, 1)) for way, of in by_way.items()}
        reached = counts[mean["random"] >= mean["active, weights"][counts == 40]]
        found.append(reached[0] if len(reached) else np.inf)
    low, high = np.quantile(found, (0.025, 0.975), method="nearest")
    assert f"with other seeds it might be anything from {low:.0f} to {high:.0f}" in PROSE


def test_the_judge_is_as_it_is_told() -> None:
    assert COMPONENTS == 64 and "there are 64 weights" in PROSE
    assert len(VARIANCES) == 11 and "the fit tries eleven" in PROSE


SHOWN, _ = outputs_and_prose("10_you_are_the_human.ipynb")


def numbers(cell: str, name: str) -> list[float]:
    return row(SHOWN[cell], name)


def by(start: str) -> str:
    (found,) = (cell.id for cell in CELLS if cell.source.startswith(start))
    return found


def test_only_what_was_labelled_to_teach_is_counted() -> None:
    """A run that goes on after its blind test would count those labels as well."""
    assert SHOWN["label-report"].startswith("88 choices"), "80, and every tenth again"
    assert "Learned from 88 labels" in SHOWN["fit-judge"]
    assert "learned from 100 labels" in SHOWN["second-habits"], "and twelve of the race"


def test_every_figure_says_who_labelled() -> None:
    sources = {cell.id: cell.source for cell in CELLS if cell.cell_type == "code"}
    drawn = [cell.id for cell in CELLS if cell.cell_type == "code" and _pictures(cell)]
    assert drawn == ["agreement-curve", "curves", "steer", "seeds-figure", "second-round"]
    assert all("BY" in sources[cell] or "simulated reader" in sources[cell] for cell in drawn)


def _pictures(cell: Any) -> list[Any]:
    return [each for each in cell.outputs if "image/png" in each.get("data", {})]


def test_what_the_judge_has_learned_is_told() -> None:
    assert "{'words': -0.72, 'ends': 0.42}" in SHOWN["liked-words"]
    assert "Here the two are -0.72 and 0.42" in PROSE
    clear = []
    for word in ("i'm", "i", "first", "2", "no", "was", "just", "if"):
        difference, error, _ = numbers("liked-words", word)
        clear += [word] if difference > 2 * error else []
    assert clear == ["i'm", "first", "2", "no"]
    assert "are more than two errors above 0: “i'm”, “no”, “first” and “2”." in PROSE


def test_the_first_round_is_told_as_it_went() -> None:
    assert numbers("habits", "words") == [21.0, 7.02]
    assert "7.0 words where it said 21.0" in PROSE
    veil = SHOWN["lift-veil"]
    assert "8 went to the trained policy, 11 to the untouched one, and 1 were ties" in veil
    assert "better eleven times, the steered one's eight times, and once it found both" in PROSE
    assert "42% (95% interval 24% to 64%)" in veil and "goes from 24% to 64%" in PROSE
    assert "Your own judge agreed with you 6 of 19 times" in veil
    assert "The course's judge agreed with you 12 of 19 times" in veil
    assert "in 6 of 19 choices" in PROSE and "of this taste, agreed in 12" in PROSE
    assert (
        "agreed with you 6 of 19 times, 32% (15% to 54%)" in veil and "coin (15% to 54%)" in PROSE
    )
    assert "in 72% of 78 choices" in SHOWN["fit-judge"] and "was right in 72%" in PROSE
    both = SHOWN["begin"]
    assert "nothing:            72%" in both and "judge: 73%" in both, "no difference"
    said = SHOWN["answers-table"]
    for answer in ("no.", "No."):
        assert answer in said and f"“{answer}”" in PROSE


def test_why_no_wins_the_judge_and_not_the_reader() -> None:
    trick = SHOWN["trick"]
    assert "'No.' is the answer to 21 of 48 prompts, in any spelling" in trick
    assert "before training it was to 0" in trick
    assert numbers("habits", "nothing but “no”") == [0, 0.44] and round(21 / 48, 2) == 0.44
    assert "the answer to 21 prompts of 48, where it was to none." in PROSE
    before, after = numbers("habits", "begins with “no”")
    told = f"{after:.0%} of all answers begin with “no”, where {before:.0%} did."
    assert told in PROSE
    assert "89% of the time, the judge says" in trick and "choose it 89% of the time" in PROSE
    assert short_and_concrete("No no.") < short_and_concrete("No no no " * 20)
    assert "short_and_concrete" in SHOWN["readers-rule"]


def test_twelve_labels_turn_what_wins() -> None:
    second = SHOWN["second-habits"]
    assert "first round: 'No.' 21 times; 24 answers of one or two words" in second
    assert "second round: 'No.' 3 times; 5 answers of one or two words" in second
    assert "stood alone 21 times in the first round and does so three times in the second" in PROSE
    assert "of 24 answers of one or two words five are left" in PROSE
    verdict = SHOWN["verdict"]
    assert [round(100 * x) for x in numbers("verdict", "win_rate")] == [44, 83]
    assert "[0.302083, 0.572917]  [0.729167, 0.927083]" in verdict
    assert "44% (30% to 57%) after the first round, 83% (73% to 93%) after the second" in PROSE
    said = SHOWN["later-table"]
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
    assert f"and {trained['worst'][short]:.0%} or more, rounded, with every seed" in PROSE
    few = [
        sum(len(words(answer)) < 3 for answer in result["after"]["answers"])
        for result in results("steer")
        if result["taste"] == short
    ]
    trick = [count for count in few if count > 10]
    assert len(trick) == 3
    assert f"in three of the five, {min(trick)} to {max(trick)} of the 128 answers" in PROSE
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


def test_two_seeds_cannot_tell_training_from_the_best_of_four() -> None:
    more, taste = [], "short and concrete"
    for control in results("controls"):
        (trained,) = (
            result
            for result in results("steer")
            if (result["taste"], result["seed"]) == (taste, control["seed"])
        )
        best = control["ways"][taste]["best of 4"]["answers"]
        by_training, by_choice = (
            np.array(wins(trained["queries"], before, answers, taste))
            for before, answers in (
                (trained["before"]["answers"], trained["after"]["answers"]),
                (control["before"], best),
            )
        )
        mean, error = paired_difference(by_training, by_choice)
        more.append(f"{100 * mean:.0f}")
        assert 4 < 100 * error < 6
    assert more == ["7", "0"]
    assert "On these two training is ahead by 7 points and by none, each give or take 5" in PROSE


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
