"""The judges and trainings behind notebook 08, and what it says of them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from typing import Any

import nbformat
import numpy as np
import pytest
from support import ROOT, notebooks
from support.scripts import load_script

from rlhf_tutorial.assets import Bundled, resolve
from rlhf_tutorial.evaluation.intervals import paired_difference
from rlhf_tutorial.evaluation.measures import commonest_opening, echoed, words
from rlhf_tutorial.evaluation.optimising import last_within
from rlhf_tutorial.evaluation.reading import agreement, compare_sources, pair_accuracy
from rlhf_tutorial.feedback import load_feedback
from rlhf_tutorial.ppo.math import adapted_kl_coef
from rlhf_tutorial.studies.committed import committed_controls, committed_overoptimisation
from rlhf_tutorial.studies.looks import progress
from rlhf_tutorial.studies.overoptimisation import best_of_n_curve, known_to, load_judge

script = load_script("overoptimisation")
FOLDER = resolve(Bundled("overoptimisation"))
SCORES, TRAININGS = committed_overoptimisation()
CONTROLS = committed_controls()
BY_NAME = {(each["size"], each["seed"]): each for each in TRAININGS}
NOTEBOOK = ROOT / "notebooks" / "08_overoptimisation.ipynb"


def prose() -> str:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return " ".join(" ".join(c.source for c in cells if c.cell_type == "markdown").split())


def test_there_are_two_trainings_of_each_size_without_a_leash() -> None:
    assert set(BY_NAME) == {(size, seed) for size in script.SIZES for seed in (0, 1)}
    assert "We ran it against A and B of each size." in prose()
    for training in TRAININGS:
        assert training["settings"]["init_kl_coef"] == 0
        assert {step["kl_coef"] for step in training["steps"]} == {0.0}


def test_every_look_is_at_the_validation_prompts_and_the_first_at_the_untouched_policy() -> None:
    prompts = sorted(load_script("feedback").prompts_of("validation"))
    for name, training in BY_NAME.items():
        assert sorted(training["queries"]) == prompts, name
        assert [at["step"] for at in training["looks"]] == [0, *script.LOOKS, script.STEPS], name
        assert training["looks"][0]["kl"] == pytest.approx([0.0] * len(prompts), abs=1e-3), name
        for look in training["looks"]:
            assert len(look["answers"]) == len(look["kl"]) == len(prompts)
    assert {rows.shape for rows in SCORES.values()} == {(len(prompts), script.ANSWERS)}


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("name", ["gold", "proxy-200-0"])
def test_the_judges_are_those_that_looked_on(name: str) -> None:
    training = BY_NAME[200, 0]
    judge, at = load_judge(name), training["looks"][-1]
    key = "gold" if name == "gold" else "proxy"
    # Scored in bfloat16 where the processor has it.
    again = judge(training["queries"][:8], at["answers"][:8])
    assert again == pytest.approx(at["scores"][key][:8], abs=0.15)


def test_a_proxy_knows_other_prompts_than_its_neighbours_and_the_gold_orders_best() -> None:
    known = json.loads((FOLDER / "judges.json").read_text(encoding="utf-8"))
    assert set(known) - {"rule"} == set(script.NAMES) == set(SCORES)
    best = max(known, key=lambda name: known[name]["accuracy"])
    assert best == "gold"
    lines = [load_line(name) for name in script.NAMES]
    assert len({line.tobytes() for line in lines}) == len(lines)


def load_line(name: str) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(FOLDER / name / "line.safetensors")["weights"]


def test_the_reading_is_of_the_answers_at_the_golds_best_look_and_at_the_end() -> None:
    rows = load_feedback(FOLDER / "reading.jsonl")
    wanted = script.rows_to_read()
    by_prompt = {row["prompt"]: row for row in rows}
    assert len(rows) == len(by_prompt) == len(wanted)
    for row in wanted:
        graded = by_prompt[row["prompt"]]["answers"]
        assert [{k: a[k] for k in ("text", "ended", "source")} for a in graded] == row["answers"]
        assert all(0 <= a["grade"] <= 5 and a["rank"] >= 1 for a in graded)


PATHS = {key: progress(training) for key, training in BY_NAME.items()}


def best(path: list[dict[str, float]]) -> dict[str, float]:
    return max(path[1:], key=lambda at: at["gold"])


def after(path: list[dict[str, float]], step: int) -> dict[str, float]:
    return next(at for at in path if at["step"] == step)


def minus(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def test_the_judges_are_as_often_right_as_the_notebook_says() -> None:
    known = json.loads((FOLDER / "judges.json").read_text(encoding="utf-8"))
    right = {
        size: sorted(round(100 * known[f"proxy-{size}-{seed}"]["accuracy"]) for seed in (0, 1, 2))
        for size in script.SIZES
    }
    gold = known["gold"]
    stated = (
        f"A proxy of 50 grades is right in {right[50][0]}% to {right[50][-1]}% of the cases, one "
        f"of 200 in {right[200][0]}% or {right[200][-1]}%, one of 800 in {right[800][0]}% to "
        f"{right[800][-1]}%, the gold in {100 * gold['accuracy']:.0f}%."
    )
    assert stated in prose() and f"in {gold['n']} pairs" in prose()
    grades = sum(
        len(row["answers"])
        for path in (script.FEEDBACK / "train.jsonl", *script.FEEDBACK.glob("round-*.jsonl"))
        for row in load_feedback(path)
    )
    assert f"*all* {grades:,} grades" in prose()


def test_only_the_smallest_proxies_are_behind_the_gold_beyond_chance() -> None:
    known = json.loads((FOLDER / "judges.json").read_text(encoding="utf-8"))
    behind = {name for name, found in known.items() if round(found["from_gold"]["high"], 3) < 0}
    assert behind == {f"proxy-50-{seed}" for seed in script.SEEDS}
    rule = known["rule"]["accuracy"]
    ahead = {name for name in script.NAMES if known[name]["accuracy"] > rule}
    assert ahead == {"gold", "proxy-800-1"}
    assert f"Nor can the two-step rule, with {rule:.0%}" in prose()
    assert max(set(known) - {"gold"}, key=lambda name: known[name]["accuracy"]) == "proxy-800-1"


def test_best_of_16_gives_no_less_than_ppo_at_its_best_checkpoint() -> None:
    top = best(PATHS[200, 0])
    row = best_of_n_curve(SCORES["proxy-200-0"], SCORES["gold"])[-1]
    reached = f"{top['gold']:+.2f} ± {top['gold_error']:.2f}, at {top['kl']:.0f} nats"
    assert f"Against 200-A the gold sees at best {reached}" in prose()
    assert f"has {row['gold']:+.2f} ± {row['gold_error']:.2f} within 2 nats" in prose()
    assert row["n"] == 16 and 10 * row["kl"] < top["kl"]
    assert row["gold"] > top["gold"] - top["gold_error"]
    stated = []
    for size in script.SIZES:
        curves = [best_of_n_curve(SCORES[f"proxy-{size}-{k}"], SCORES["gold"]) for k in (0, 1, 2)]
        low, *_, high = sorted(curve[-1]["gold"] for curve in curves)
        grades = " grades" if size == script.SIZES[0] else ""
        stated.append(
            f"{low:.2f} to {high:.2f}{grades} if {'its proxy' if grades else 'it'} knew {size}"
        )
    told = f"best of 16 gains {stated[0]}, {stated[1]}, and {stated[2]}."
    assert told in prose()
    for (size, seed), path in PATHS.items():
        curve = best_of_n_curve(SCORES[f"proxy-{size}-{seed}"], SCORES["gold"])
        assert curve[-1]["gold"] > best(path)["gold"], (size, seed)
    assert "nowhere does the gold like PPO's best checkpoint better than the best of 16" in prose()


def test_the_less_a_proxy_knows_the_more_it_promises_in_its_own_spread() -> None:
    excess = {}
    for size in script.SIZES:
        over = []
        for seed in script.SEEDS:
            name = f"proxy-{size}-{seed}"
            row = best_of_n_curve(SCORES[name], SCORES["gold"])[-1]
            over.append(row["proxy"] / SCORES[name].std() - row["gold"] / SCORES["gold"].std())
        excess[size] = np.mean(over)
    assert excess[50] > excess[200] > excess[800]
    assert all(
        best_of_n_curve(SCORES[name], SCORES["gold"])[-1]["proxy"]
        < best_of_n_curve(SCORES[name], SCORES["gold"])[-1]["gold"]
        for name in script.NAMES
        if name != "gold"
    )
    assert "No proxy promises more grades than the gold sees" in prose()
    spreads = sorted(SCORES[f"proxy-50-{seed}"].std() for seed in script.SEEDS)
    assert f"{spreads[0]:.1f} {spreads[-1]:.1f} {SCORES['gold'].std():.1f}" == "0.3 0.4 0.7"
    assert "is 0.3 or 0.4 grades for a proxy of 50 grades, and 0.7 for the gold" in prose()


def test_three_judges_are_fooled_two_trainings_break_and_two_seem_to_hold() -> None:
    for key, path in PATHS.items():
        assert (best(path)["gold"] > 2 * best(path)["gold_error"]) == (key != (50, 1))
    for key in ((800, 1), (50, 0), (50, 1)):  # the proxy is as high as ever, the gold below 0
        end = PATHS[key][-1]
        assert end["proxy"] > max(at["proxy"] for at in PATHS[key]) - 0.01 and end["gold"] < 0
    fooled, small = PATHS[800, 1][-1], PATHS[50, 0][-1]
    both = f"at {fooled['proxy']:+.2f} grades, and the gold at {minus(fooled['gold'])} ± "
    assert both + f"{fooled['gold_error']:.2f}" in prose()
    told = f"with {small['proxy']:+.2f} by the proxy and {minus(small['gold'])} ±"
    assert f"{told} {small['gold_error']:.2f} by the gold" in prose()
    plain, low = PATHS[50, 1], after(PATHS[50, 1], 30)
    rising = [at["proxy"] for at in plain if at["step"] >= 1]
    assert rising == sorted(rising) and "climbs from the second step to the last" in prose()
    assert all(at["gold"] < at["gold_error"] for at in plain[1:])
    assert f"to {plain[-1]['proxy']:+.2f}. The gold sees no gain beyond its error" in prose()
    end = plain[-1]
    told = f"it's at {minus(low['gold'])} ± {low['gold_error']:.2f}, at the end at "
    assert f"{told}{minus(end['gold'])} ± {end['gold_error']:.2f}." in prose()
    said = Counter(BY_NAME[50, 1]["looks"][-1]["answers"])
    assert (
        said["FROSTELLADO"] == 50 and "FROSTELLADO, and says it to every second prompt" in prose()
    )
    held = PATHS[200, 1][-1]
    assert f"with 200-B: {held['proxy']:+.2f} by the proxy, {held['gold']:+.2f} ± " in prose()
    assert f"{held['gold_error']:.2f} by the gold, {held['kl']:.0f} nats away" in prose()
    ten, thirty = (after(PATHS[200, 1], step) for step in (10, 30))
    fell = f"the gold fell from {ten['gold']:+.2f} to {thirty['gold']:+.2f}, while the proxy held"
    assert fell in prose() and thirty["proxy"] > ten["proxy"]
    level, fell = (after(PATHS[200, 0], step) for step in (15, 30))
    assert f"{level['proxy']:+.2f}" == f"{fell['proxy']:+.2f}" == "+0.42"
    assert f"the gold fell from {level['gold']:+.2f} to {fell['gold']:+.2f}" in prose()
    before, end = after(PATHS[200, 0], 30), PATHS[200, 0][-1]
    falls = f"{before['proxy']:+.2f} after 30 steps and {end['proxy']:+.2f} after 40"
    assert falls in prose() and f"doubled to {end['kl']:.0f} nats" in prose()
    assert end["ended"] < 0.5 < 0.9 < before["ended"] and end["kl"] > 2 * before["kl"]
    early = after(PATHS[50, 0], 3)
    assert f"the proxy is at {minus(early['proxy'])}, and {early['ended']:.0%}" in prose()
    held = PATHS[800, 0]
    proxies = [at["proxy"] for at in held if at["step"] >= 20]
    assert max(proxies) - min(proxies) < 0.03
    assert f"from {best(held)['gold']:+.2f} to {held[-1]['gold']:+.2f}" in prose()
    ends = sorted(path[-1]["kl"] for path in PATHS.values())
    assert f"PPO ends {ends[0]:.0f} to {ends[-1]:.0f} nats away" in prose()


def test_one_policy_says_no_to_everybody_and_a_third_of_the_reason_is_known() -> None:
    assert {answer.strip(" .").lower() for answer in BY_NAME[800, 1]["looks"][-1]["answers"]} == {
        "no"
    }

    def short(seed: int) -> list[tuple[str, int]]:
        return [
            (row["text"], row["grade"])
            for row in known_to(800, seed)
            if row["ended"] and len(words(row["text"])) <= 3
        ]

    assert sorted(grade for _, grade in short(1)) == [1, 1, 1, 4, 4, 4]
    assert [grade for _, grade in short(0)] == [0]
    assert [grade for text, grade in short(2) if text.strip(".") == "No"] == [4, 4]
    given = json.loads((FOLDER / "no.json").read_text(encoding="utf-8"))

    def lead(found: dict[str, float]) -> float:
        return found["no"] - found["untouched"]

    told = given["proxy-800-1"]
    assert f'gives the answer "no" {told["no"]:.2f} on average over the prompts' in prose()
    assert f"the untouched policy's answers {told['untouched']:.2f}" in prose()
    assert f'"No" led by {lead(told):.2f} grades' in prose()
    gone = (lead(told) - lead(given["without the short ones"])) / lead(told)
    assert 0.3 < gone < 0.35 and "The six make a third of the lead" in prose()
    assert all(abs(lead(told) - lead(found)) < 0.07 for found in given["without as many others"])
    assert lead(given["gold"]) < 0 < 0.7 < lead(given["proxy-800-2"])


def test_no_begins_at_once_and_one_training_turns_away_from_it() -> None:
    after_one = [100 * beginning_with_no(training)[1] / 96 for training in TRAININGS]
    told = f'after a single step "no" opens {min(after_one):.0f}% to {max(after_one):.0f}%'
    assert told in prose()
    away = BY_NAME[800, 0]
    counts = dict(zip((at["step"] for at in away["looks"]), beginning_with_no(away), strict=True))
    assert counts[1] and not any(n for step, n in counts.items() if step >= 15)
    assert "Against 800-A not one answer begins so from step 15 on" in prose()
    fewer = [beginning_with_no(training)[-1] <= 6 for training in TRAININGS]
    assert sum(fewer) == 3 and "Three trainings turn away from it" in prose()
    (best_look,) = (at for at in away["looks"] if at["step"] == best(PATHS[800, 0])["step"])
    word, share = commonest_opening(best_look["answers"], 1)
    assert (best_look["step"], word, f"{share:.0%}") == (20, "you", "69%")
    assert (
        'at step 20, where the gold likes this policy best, 69% of the answers begin with "you"'
        in (prose())
    )


def test_the_rest_of_the_lead_may_come_from_answers_that_begin_with_no() -> None:
    told = []
    for seed in script.SEEDS:
        known = known_to(800, seed)
        average = np.mean([row["grade"] for row in known])
        begin = [row["grade"] for row in known if words(row["text"])[:1] == ["no"]]
        told.append(f"{len(begin)}, {np.mean(begin) - average:.2f}")
    assert told == ["37, 0.47", "42, 1.06", "39, 0.97"]
    for said in (
        "knows 42 of them",
        "of them, graded 1.06 above",
        "knows 39, at 0.97",
        "800-A 37, at 0.47",
    ):
        assert said in prose()


def test_the_letters_share_a_third_of_their_prompts_and_the_sizes_are_nested() -> None:
    asked = {
        (size, seed): {row["prompt"] for row in known_to(size, seed)}
        for size in script.SIZES
        for seed in script.SEEDS
    }
    for seed in script.SEEDS:
        assert asked[50, seed] < asked[200, seed] < asked[800, seed]
        shared = len(asked[800, seed] & asked[800, (seed + 1) % 3]) / len(asked[800, seed])
        assert 0.3 < shared < 0.34
    assert "two proxies of 800 share about a third of their prompts" in prose()


def test_the_rule_of_the_first_section_is_little_better_than_a_coin() -> None:
    rows = load_feedback(script.FEEDBACK / "test.jsonl")
    scores = [echoed(row["prompt"], a["text"]) for row in rows for a in row["answers"]]
    share = pair_accuracy(rows, scores, resamples=1)["accuracy"]
    assert f"the one that the reader prefers in {share:.0%} of the pairs" in prose()


def test_what_could_be_known_is_told() -> None:
    rungs = json.loads((FOLDER.parent / "judge" / "ladder.json").read_text(encoding="utf-8"))[
        "rows"
    ]
    ladder = {rung["judge"]: rung["all"]["accuracy"] for rung in rungs}
    assert f"“It ended” alone is right in {ladder['rule: it ended']:.0%} of these pairs" in prose()
    assert f"agrees with itself in {ladder['a second reading']:.0%}" in prose()


def test_a_proxy_was_fitted_to_what_it_is_said_to_know() -> None:
    untouched = load_feedback(script.FEEDBACK / "train.jsonl")
    prompts, texts, grades = script.flat(untouched)
    for seed in script.SEEDS:
        order = np.random.default_rng(seed).permutation(len(untouched))
        for size in script.SIZES:
            kept = [4 * i + j for i in order for j in range(4)][:size]
            known = known_to(size, seed)
            assert [(r["prompt"], r["text"], r["grade"]) for r in known] == [
                (prompts[i], texts[i], grades[i]) for i in kept
            ]


def test_the_second_trainings_were_read_as_the_notebook_tells() -> None:
    rows = load_feedback(FOLDER / "reading-b.jsonl")
    shown, _ = notebooks.outputs_and_prose(NOTEBOOK.name)
    table = " ".join(shown["reading-no"].split())
    sheets = dict.fromkeys(PATHS, load_feedback(FOLDER / "reading.jsonl"))
    sheets |= {(200, 1): rows, (50, 1): rows, (800, 1): load_feedback(FOLDER / "reading-no.jsonl")}
    sure = []
    for size, seed in PATHS:
        path = PATHS[size, seed]
        for at in (best(path), path[-1]):
            name = f"{size}-{'AB'[seed]}, step {at['step']}"
            if seed == 0:
                source = f"{size}, last" if at is path[-1] else f"{size}, gold's best"
            else:
                source = name
            sheet = sheets[size, seed]
            found = compare_sources(sheet, "untouched", [source])
            gain = found["grade_after"] - found["grade_before"]
            low, high = found["grade_gain_interval"]
            sure.append((at is path[-1], gain, low, high))
            if sheet is rows:
                looked = {(a["source"], a["text"]) for row in rows for a in row["answers"]}
                (look,) = (x for x in BY_NAME[size, seed]["looks"] if x["step"] == at["step"])
                assert {(name, text) for text in look["answers"]} <= looked
                assert (
                    f"{name} {at['proxy']:+.2f} {at['gold']:+.2f} {gain:+.2f} ({low:+.2f} to"
                    in table
                )
    assert sum(low > 0 for last, _, low, _ in sure if not last) == 4
    assert "the reader sees a gain in four of them beyond doubt" in prose()
    ends = [(gain, high) for last, gain, _, high in sure if last]
    assert all(gain < 0 for gain, _ in ends) and "At the end it sees a gain in none" in prose()
    assert (
        sum(gain < -0.95 for gain, _ in ends) == 3 and "three policies are a whole grade" in prose()
    )


def test_200_b_looks_well_to_both_judges_and_not_to_the_reader() -> None:
    rows, path = load_feedback(FOLDER / "reading-b.jsonl"), PATHS[200, 1]

    def read(source: str) -> tuple[float, str, float]:
        found = compare_sources(rows, "untouched", [source])
        low, high = found["grade_gain_interval"]
        gain = found["grade_after"] - found["grade_before"]
        return gain, f"{gain:+.2f} ({low:+.2f} to {high:+.2f})", found["grade_after"]

    ten, end = after(path, 10), path[-1]
    assert (
        f"the gold sees {ten['gold']:+.2f}, and the reader {read('200-B, step 10')[0]:+.2f}"
        in prose()
    )
    assert f"agree again, with {end['proxy']:+.2f} and {end['gold']:+.2f}" in prose()
    assert end["ended"] == 1 and f"gain is gone: {read('200-B, step 40')[1]}" in prose()
    training = BY_NAME[200, 1]
    butter = next(i for i, query in enumerate(training["queries"]) if "brown butter" in query)
    said = training["looks"][-1]["answers"][butter].rstrip(".")
    assert f'"{said}", says this policy to somebody who wants to brown butter' in prose()
    fall, _, grade = read("50-B, step 40")
    assert f"The reader's mean falls by {-fall:.2f}, to {grade:.2f}" in prose()
    again = load_feedback(FOLDER / "reading-b-again.jsonl")
    asked = {row["prompt"] for row in again}
    found = agreement([row for row in rows if row["prompt"] in asked], again)
    alike = tied = 0
    for first, second in zip([row for row in rows if row["prompt"] in asked], again, strict=True):
        grades = [{a["source"]: a["grade"] for a in row["answers"]} for row in (first, second)]
        for one, other in combinations(grades[0], 2):
            before, after_ = (grade[one] - grade[other] for grade in grades)
            alike += before * after_ > 0
            tied += before != 0 and after_ == 0
    assert alike + tied == found["pairs"], "none is turned round"
    told = f"Of {found['pairs']} pairs that the first told apart it ordered {alike} alike and tied"
    assert f"{told} {tied}." in prose()


def test_the_reader_sees_the_gold_over_optimised() -> None:
    rows = load_feedback(FOLDER / "reading.jsonl")

    def gain(source: str) -> tuple[float, float, float]:
        found = compare_sources(rows, "untouched", [source], resamples=1000)
        low, high = found["grade_gain_interval"]
        return found["grade_after"] - found["grade_before"], low, high

    assert sum(gain(f"{size}, gold's best")[1] > 0 for size in script.SIZES) == 2
    assert all(-1.1 < gain(f"{size}, last")[0] < -0.9 for size in (50, 200))
    mean, _, high = gain("800, last")
    assert -0.4 < mean < -0.25 and high < 0.05
    assert 0.4 < PATHS[800, 0][-1]["gold"] < 0.5
    graded = {(r["prompt"], a["source"]): a["grade"] for r in rows for a in r["answers"]}
    (first, *_), prompts = BY_NAME[800, 0]["looks"], BY_NAME[800, 0]["queries"]
    untouched = [graded[p, "untouched"] for p in prompts]
    slope = np.polyfit(untouched, first["scores"]["gold"], 1)[0]
    assert f"it moves by {slope:.2f} for a grade of the reader's" in prose()
    more, left = [], []
    for size in script.SIZES:
        first, *_, last = BY_NAME[size, 0]["looks"]
        prompts = BY_NAME[size, 0]["queries"]
        gold = np.subtract(last["scores"]["gold"], first["scores"]["gold"])
        reader = [graded[p, f"{size}, last"] - graded[p, "untouched"] for p in prompts]
        mean, error = paired_difference(gold, reader)
        assert mean > 4 * error
        more.append(f"{mean:.2f}")
        rest, error = paired_difference(gold, slope * np.array(reader))
        left.append(f"{minus(rest)} ± {error:.2f}")
    assert "by {}, {} and {} grades, four standard errors or more".format(*more) in prose()
    assert f"Against 200 grades nothing is left: {left[1]}." in prose()
    assert sum(grade == 0 for grade in untouched) == 5
    picked = []
    for size in (200, 800):
        first, *looked = BY_NAME[size, 0]["looks"]
        at = max(looked, key=lambda look: np.mean(look["scores"]["gold"]))
        reader = [graded[p, f"{size}, gold's best"] - graded[p, "untouched"] for p in prompts]
        gold = np.subtract(at["scores"]["gold"], first["scores"]["gold"])
        picked.append(f"{paired_difference(gold, slope * np.array(reader))[0]:+.2f}")
    assert "show as much, {} and {} against 200 and 800.".format(*picked) in prose()
    assert f"Against 50 and 800 there is: {left[0]} and {left[2]}." in prose()


def test_the_controls_differ_from_the_training_in_one_thing() -> None:
    free, known = BY_NAME[200, 0], {"init_kl_coef": 0.0, "seed": 0, "learning_rate": script.RATE}
    assert free["settings"].items() <= known.items()
    weight = {"leash": script.PRESET.ppo["init_kl_coef"], "gold": 0.0}
    assert set(CONTROLS) == set(weight) | {f"{what}-bf16" for what in weight}
    for what, training in CONTROLS.items():
        beta = weight[what.removesuffix("-bf16")]
        assert training["settings"] == known | {"init_kl_coef": beta}
        assert {step["kl_coef"] for step in training["steps"]} == {beta}
        assert training["queries"] == free["queries"]
        assert [at["step"] for at in training["looks"]] == [at["step"] for at in free["looks"]]
        same = training["looks"][0]["answers"] == free["looks"][0]["answers"]
        assert same == (what in weight), "drawn with the same arithmetic"


def test_with_the_gold_as_the_reward_nothing_breaks() -> None:
    end = progress(CONTROLS["gold"])[-1]
    assert f"{end['gold']:+.2f} ± {end['gold_error']:.2f} at {end['kl']:.0f} nats" in prose()
    assert f"and {end['ended']:.0%} of the answers end" in prose()
    low = min(progress(CONTROLS["gold"])[4:], key=lambda at: at["gold"])
    assert low["step"] == 10 and "after a bad moment at step 10" in prose()
    again = progress(CONTROLS["gold-bf16"])[-1]
    assert (
        f"rounds differently ended at {again['gold']:+.2f} ± {again['gold_error']:.2f}" in prose()
    )
    said = CONTROLS["gold"]["looks"][-1]["answers"]
    assert "The orange engine light refers to the engine's color: orange." in said


def test_what_the_notebook_says_of_the_leash() -> None:
    leashed, free = progress(CONTROLS["leash"]), PATHS[200, 0]
    end, broken = leashed[-1], free[-1]
    assert (
        f"the gold sees {end['gold']:+.2f} ± {end['gold_error']:.2f} at {end['kl']:.0f} nats, and "
        f"{minus(broken['gold'])} ± {broken['gold_error']:.2f} at {broken['kl']:.0f}"
    ) in prose()
    two = after(leashed, 15), after(free, 15)
    assert "level by the gold ({:+.2f} and {:+.2f})".format(*(at["gold"] for at in two)) in prose()
    assert abs(two[0]["gold"] - two[1]["gold"]) < two[0]["gold_error"]
    assert 1.7 < two[1]["kl"] / two[0]["kl"] < 2
    assert all(abs(at["gold"] - end["gold"]) < 0.1 for at in leashed if at["step"] >= 15)
    again = progress(CONTROLS["leash-bf16"])[-1]
    assert f"ended at {again['gold']:+.2f} ± {again['gold_error']:.2f}, and began" in prose()
    share = beginning_with_no(CONTROLS["leash-bf16"])[-1] / 96
    assert f'began {share:.0%} of its answers with "no"' in prose()


def beginning_with_no(training: dict[str, Any]) -> list[int]:
    """How many answers begin with the word at each look, from the untouched policy's on."""
    return [sum(words(a)[:1] == ["no"] for a in at["answers"]) for at in training["looks"]]


def test_stopping_within_five_nats_keeps_a_gain_and_some_nos() -> None:
    stopped, before = [], set()
    gains = []
    for key, path in PATHS.items():
        assert 1.5 < path[1]["kl"] < 5.5
        stop = last_within([at["kl"] for at in path], 5)
        gains.append(path[stop]["gold"])
        assert gains[-1] > 2 * path[stop]["gold_error"] or key == (50, 1)
        counts = beginning_with_no(BY_NAME[key])
        stopped.append(counts[stop])
        before.add(counts[0])
        assert len(BY_NAME[key]["looks"][stop]["answers"]) == 96
    (untouched,) = before
    lowest, *others = sorted(gains)
    assert lowest < 0 and f"by the gold, {others[0]:.2f} to {others[-1]:.2f}." in prose()
    told = f"{min(stopped)} to {max(stopped)} of 96 answers begin so at these checkpoints"
    assert f"{told}, where {untouched} did before" in prose() and min(stopped) > untouched
    read = PATHS[50, 0][last_within([at["kl"] for at in PATHS[50, 0]], 5)]
    assert read == best(PATHS[50, 0]) and round(read["kl"]) == 4, "the one that the reader graded"
    rows = load_feedback(FOLDER / "reading.jsonl")
    assert compare_sources(rows, "untouched", ["50, gold's best"])["grade_gain_interval"][0] > 0


def test_the_openings_are_counted_by_one_word_and_by_two() -> None:
    table = notebooks.outputs_and_prose(NOTEBOOK.name)[0]["over-24"]
    shares = []
    for (size, seed), training in BY_NAME.items():
        answers = training["looks"][-1]["answers"]
        for n in (1, 2):
            assert "{}: {:.0%}".format(*commonest_opening(answers, n)) in table, (size, seed)
        word, share = commonest_opening(answers, 1)
        shares += [f"{share:.0%}"] if word == "no" else []
        if (size, seed) == (200, 1):
            assert word == "to" and 0.45 < share < 0.55
            assert 'begins every second answer with "to"' in prose()
    assert sorted(shares) == ["100%", "29%", "95%"]
    assert "Three of the six trainings have come to" in prose()
    assert "of all answers, of 95%, and of 29%, where it was that of 6% before" in prose()
    assert {round(100 * beginning_with_no(training)[0] / 96) for training in TRAININGS} == {6}


def test_a_horizon_of_200_answers_doubles_the_weight_in_forty_steps() -> None:
    beta = 1.0
    for _ in range(40):
        beta = adapted_kl_coef(beta, 100.0, 6.0, 16, 200)
    assert 1.8 < beta < 2.2 and "here about 200" in prose()


def test_the_policy_that_says_no_was_read_as_the_notebook_tells() -> None:
    shown, prose = notebooks.outputs_and_prose(NOTEBOOK.name)
    rows = load_feedback(FOLDER / "reading-no.jsonl")
    training = json.loads((FOLDER / "ppo-800-1.json").read_text(encoding="utf-8"))
    again = load_script("feedback").answers_on_the_way(
        FOLDER / "ppo-800-1.json", [0, 2, 40], "800-B"
    )
    for row in again:
        row["answers"][0]["source"] = "untouched"  # where the script says "800-B, step 0"
    texts = [[(a["text"], a["source"]) for a in row["answers"]] for row in rows]
    assert texts == [[(a["text"], a["source"]) for a in row["answers"]] for row in again]
    looks = {look["step"]: look for look in training["looks"]}
    assert set(looks[40]["answers"]) == {"no"} and 'it says "no" to all 96 prompts' in prose

    def gain(judge: str, step: int) -> str:
        found = np.subtract(looks[step]["scores"][judge], looks[0]["scores"][judge])
        return f"{found.mean():+.2f}"

    def read(step: int) -> str:
        found = compare_sources(rows, "untouched", [f"800-B, step {step}"])
        low, high = found["grade_gain_interval"]
        gained = found["grade_after"] - found["grade_before"]
        return f"{gained:+.2f} ({low:+.2f} to {high:+.2f})"

    table = " ".join(shown["reading-no"].split())
    for step in (2, 40):
        seen = f"800-B, step {step} {gain('proxy', step)} {gain('gold', step)} {read(step)}"
        assert seen in table
    assert read(2).split("(")[1].startswith("+"), "the reader agrees"
    assert f"the proxy gives that {gain('proxy', 40)}. This time" in prose
    assert f"isn't fooled: {gain('gold', 40)}. The reader says {read(40)}." in prose
    worth = {
        step: sum(
            a["grade"] >= 3
            for row in rows
            for a in row["answers"]
            if a["source"] == (f"800-B, step {step}" if step else "untouched")
        )
        for step in (0, 40)
    }
    assert worth == {0: 14, 40: 1} and "14 of the 96 untouched answers have a 3 or more" in prose
