"""What README and landing page open with, and the page on the original, against their source."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jinja2
import pytest
from support import ROOT
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.data import first_prompt
from rlhf_tutorial.evaluation.reading import pair_accuracy
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.studies.committed import committed_three, widest_swing

sys.path.append(str(ROOT / "site"))
import facts

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())


def test_the_prompt_is_the_one_with_the_widest_swing_and_its_answers_are_on_the_sheets() -> None:
    three = committed_three()
    swing = 2 * three["after_grade"] - three["before_grade"] - three["pushed_grade"]
    assert (swing == swing.max()).sum() == 1, "one prompt, not one of several"
    shown = widest_swing(three)
    head = README.split("## Two commands")[0]
    assert f"**{shown['prompt']}**" in head and f"Of {len(three)} prompts" in head
    for when in ("before", "after", "pushed"):
        cut = "" if shown[f"{when}_ended"] else " *(out of room)*"
        assert f"| {shown[when]}{cut} | {shown[f'{when}_grade']} |" in head
    assert (
        f"gives it {shown['pushed_score']:.2f}, and gives the first one {shown['before_score']:.2f}"
        in PROSE
    )
    scores = [three[f"{when}_score"].mean() for when in ("pushed", "before")]
    grades = [three[f"{when}_grade"].mean() for when in ("pushed", "before")]
    assert "judge says {:.2f}, up from {:.2f}".format(*scores) in PROSE
    assert "the reader {:.2f}, down from {:.2f}".format(*grades) in PROSE


def test_the_four_levers_of_the_readme() -> None:
    reading = json.loads(
        (ROOT / "notebooks" / "results" / "smollm2" / "reading.json").read_text(encoding="utf-8")
    )
    head, folded, _ = re.split(r"</?details>", README.split("## Two commands")[0])
    told, after_a_guess = (
        re.findall(r"^\| (.+) \| (\d\.\d\d) \|$", part, re.M) for part in (head, folded)
    )
    cheap = facts.cheap_levers(reading)
    assert after_a_guess == [(row["what"], f"{row['grade']:.2f}") for row in cheap]
    for row in cheap:
        assert f"{row['grade']:.2f}" not in head, "notebook 01 lets one guess it"
    told = [grade for _, grade in told]
    assert told == [f"{row['grade']:.2f}" for row in facts.levers(reading)]
    start, trained, _ = (float(grade) for grade in told)
    free = reading["untouched, best"]["grade_after"]
    assert free - start > (trained - start) / 2
    assert "More than half of the way from 0.33 to 2.15 costs nothing" in PROSE


def test_what_the_readme_says_of_the_controls() -> None:
    path = ROOT / "notebooks" / "results" / "smollm2" / "reading.json"
    reading = json.loads(path.read_text(encoding="utf-8"))
    base, gain = reading["untouched, best"]["grade_after"], {}
    for name in ("untouched, first sentence", "untouched, best of 4", "fine-tuned"):
        gain[name] = reading[name]["grade_after"] - base
    best = reading["best_temperatures"]
    default, long = (best[arm]["grade_after"] - base for arm in ("default", "long"))
    assert 0.4 < gain["untouched, first sentence"] / default < 0.6
    assert 0.6 < gain["untouched, best of 4"] / default < 0.8
    assert gain["fine-tuned"] > default and long > max(gain.values())
    for words in ("gives about half of the five-minute run's gain", "somewhat more",
                  "Fine-tuning gives all of it"):  # fmt: skip
        assert words in PROSE
    found = reading["fine-tuned"]["long_against_it"]
    low, high = found["win_rate_interval"]
    assert low < 0.5 < high and (
        f"Against the fine-tuned policy it wins {found['win_rate']:.0%} of the pairs ({low:.0%} to "
        f"{high:.0%}), which proves nothing" in PROSE
    )
    for name in ("untouched, first sentence", "untouched, best of 4"):
        assert reading[name]["long_against_it"]["win_rate_interval"][0] > 0.5
    assert "The long run beats the first two" in PROSE
    split = reading["gain_by_ending"]["best_temperatures"]
    assert split["default"]["by_ending"] > split["default"]["by_content"]
    assert split["default"]["by_content_interval"][0] < 0 < split["long"]["by_content_interval"][0]
    rows = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
    cut = [a["grade"] for row in rows for a in row["answers"] if not a["ended"]]
    assert max(cut) == 1 and "an answer that is cut off 1 at the most" in PROSE
    results = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    half, greedy = (reading[f"untouched{t}"]["grade_after"] for t in (", best", ", greedy"))
    assert f"0.5 ({reading['default']['grade_before']:.2f}) or greedy ({greedy:.2f})" in results
    gains = [best["default"]["grade_after"] - base for base in (greedy, half)]
    assert "take {:.2f} to {:.2f} for".format(*gains) in results
    tuning = " ".join((ROOT / "docs" / "tuning.md").read_text(encoding="utf-8").split())
    assert "had 1.75 there" in tuning and "had 1.75 in an earlier one" in PROSE


def test_how_often_the_judges_order_trained_answers_as_the_reader_does() -> None:
    rows = load_feedback(resolve(Bundled("feedback")) / "reading.jsonl")
    shares = {}
    for part in ("all", "ended"):
        trained = [
            row | {"answers": [a for a in row["answers"] if of_training(a, part == "ended")]}
            for row in rows
        ]
        for judge in ("first", "second"):
            scores = [a[judge] for row in trained for a in row["answers"]]
            found = pair_accuracy(trained, scores, resamples=1)
            shares[part, judge] = f"{found['accuracy']:.0%}"
    results = " ".join((ROOT / "docs" / "results.md").read_text(encoding="utf-8").split())
    told = "answers of *trained* policies it's {} and {}; where both ended, {} and {}."
    assert told.format(*shares.values()) in results
    told = "of two answers of *trained* policies in {} and {}; a coin has 50%"
    assert told.format(*list(shares.values())[:2]) in PROSE


def of_training(answer: dict[str, Any], whole: bool) -> bool:
    return answer["source"].startswith(("default", "long")) and (answer["ended"] or not whole)


def test_the_temperatures_under_the_picture_are_those_of_the_reading() -> None:
    script = load_script("reading")
    sources = script.test_sources({"untouched": 0.3, "default-0": 0.3, "long": 0.01})
    assert sources["fine-tuned"].temperature == 0.3 == sources["untouched, best"].temperature
    assert sources["untouched, best of 4"].temperature == 0.5
    assert "0.5 for the best of 4" in PROSE and "fine-tuned policy: it has 0.3" in PROSE


@pytest.mark.slow
def test_the_picture_and_what_is_said_of_it() -> None:
    pictures = load_script("make_figures")
    judged, read = pictures.judged(), pictures.read()
    assert all(run[-1]["score"] > run[0]["score"] for runs in judged.values() for run in runs)
    starts, ends = (
        [[run[at]["score"] for run in runs] for runs in judged.values()] for at in (0, -1)
    )
    assert {f"{start:.1f}" for runs in starts for start in runs} == {"1.2", "1.3", "1.4"}
    assert [{f"{end:.1f}" for end in runs} for runs in ends] == [{"2.0"}, {"1.8"}]
    (alternative,) = re.findall(r"!\[(.*?)\]\(images/result\.png\)", README)
    assert re.findall(r"\d\.\d\d", alternative) == [f"{row['value']:.2f}" for row in read]
    # "A blind reader agrees. Cheap controls come near": each gain's interval is above 0, and one
    # that needs no training is within that of the default run.
    untouched, *others = read
    assert all(row["low"] > untouched["value"] for row in others)
    by_label = {row["label"]: row for row in read}
    ppo, picked = by_label["PPO, three seeds"], by_label["… best of 4 by the judge"]
    assert ppo["low"] < picked["value"] < ppo["value"] and len(ppo["seeds"]) == 3
    reading = json.loads(
        (ROOT / "notebooks" / "results" / "smollm2" / "reading.json").read_text(encoding="utf-8")
    )
    for row, of in ((ppo, "default"), (by_label["PPO, the long run"], "long")):
        best = reading["best_temperatures"][of]
        ends_of = [best["grade_before"] + end for end in best["grade_gain_interval"]]
        assert [row["low"], row["high"]] == pytest.approx(ends_of)
        assert row["value"] == pytest.approx(best["grade_after"])


def test_the_landing_page_opens_with_the_same_answers() -> None:
    page = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    head = page.split("## Is it the training?")[0]
    three = committed_three()
    shown = jinja2.Template(head, undefined=jinja2.StrictUndefined).render(
        three=three, opening=widest_swing(three)
    )
    for text in ("Rowing is not rowing.", "reader: 5 of 5", "its judge: 2.03", "Of 96 prompts"):
        assert text in shown


@pytest.mark.parametrize(
    "row",
    re.findall(
        r"^\| `(.+?)` \| `(.+?)` \| (.+?) \|$",
        (ROOT / "docs/original.md").read_text(encoding="utf-8"),
        re.M,
    ),
)
def test_the_page_on_the_original_cuts_as_it_does(row: tuple[str, str, str]) -> None:
    dialogue, by_position, ours = (part.strip("`").replace(r"\n", "\n") for part in row)
    sliced = dialogue[len("\n\nHuman: ") : dialogue.find("Assistant:")].replace("\n", " ").strip()
    assert sliced == by_position
    assert first_prompt(dialogue) == (None if ours.startswith("none") else ours)
