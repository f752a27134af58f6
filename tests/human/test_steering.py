"""From labels to a judge to a policy: on the tiny preset, whose policy is two random layers."""

import json
import shutil
from dataclasses import replace

import pytest
from support.runs import contents
from transformers import AutoModelForCausalLM

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.__main__ import main
from rlhf_tutorial.errors import TutorialError
from rlhf_tutorial.human.judge import BayesianJudge, Features, state_reader
from rlhf_tutorial.human.labels import (
    append_label,
    labels_of,
    labels_path,
    policy_name,
    untouched_pairs,
)
from rlhf_tutorial.human.readers import SimulatedReader
from rlhf_tutorial.human.steering import (
    answers_of,
    gained_words,
    habits,
    pairs_against,
    steer,
    steered_policy,
    steering_run,
    trained_by_steering,
    whole_answers,
)
from rlhf_tutorial.human.study import label_pairs, simulated_label, win_rate

TINY = replace(load_preset("tiny"), prompts=32)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A run with twelve labels of a simulated reader, and the judge that learned from them."""
    run = Run(TINY, tmp_path_factory.mktemp("run"))
    pairs = untouched_pairs(run, 12)
    reader = SimulatedReader("short and concrete")
    for pair in pairs:
        append_label(labels_path(run), simulated_label(pair, reader(pair), policy_name(run)))
    features = Features.fit(state_reader(run), pairs)
    return run, BayesianJudge.fit(features, labels_of(run), policy_name(run))


@pytest.fixture
def run_and_judge(judged, tmp_path):
    run, judge = judged
    shutil.copytree(run.folder, tmp_path / "run")
    return Run(TINY, tmp_path / "run"), judge


def test_the_judge_reads_with_the_runs_own_policy(judged):
    _, judge = judged
    assert judge.features.reader.layers == (1,)  # two layers: three fifths and three quarters of it
    assert len(judge(["Why?"], ["Because."])) == 1


def test_an_answer_that_is_cut_off_pays():
    reward = whole_answers(lambda queries, responses: [2.0] * len(responses), penalty=0.75)
    assert reward(["q"] * 3, ["It ends.", "It does not", ""]) == [2.0, 1.25, 1.25]


def test_steering_leaves_a_policy_and_is_not_done_twice(run_and_judge):
    run, judge = run_and_judge
    stats = list(steer(run, judge, steps=2))
    assert len(stats) == 2
    assert stats[0]["ppo/mean_scores"] != 0
    first = contents(steered_policy(run))
    again = list(steer(run, judge, steps=2))
    assert [row["objective/kl"] for row in again] == [row["objective/kl"] for row in stats]
    assert contents(steered_policy(run)) == first
    list(steer(run, judge, steps=1))  # another training takes its place
    assert contents(steered_policy(run)) != first


def test_a_training_against_another_judge_is_another_training(run_and_judge):
    run, judge = run_and_judge
    taught = BayesianJudge.fit(judge.features, labels_of(run)[:6], policy_name(run))
    assert steering_run(run, judge, 2).folder == steering_run(run, judge, 2).folder
    assert steering_run(run, judge, 2).folder != steering_run(run, taught, 2).folder
    assert steering_run(run, judge, 2).folder != steering_run(run, judge, 2, seed=1).folder


def test_prompts_come_again_where_there_are_not_enough(run_and_judge):
    run, judge = run_and_judge
    for steps, found in {2: (1, 32), 3: (2, 32), 4: (2, 32), 1: (1, 16)}.items():
        steered = steering_run(run, judge, steps)  # of 16 of the 32 prompts each
        assert (steered.preset.epochs, steered.preset.prompts) == found


def test_pairs_against_a_policy_are_of_both(run_and_judge, monkeypatch):
    run, judge = run_and_judge
    with pytest.raises(TutorialError, match="train one with `steer` first"):
        trained_by_steering(run)
    list(steer(run, judge, steps=1))
    pairs = pairs_against(run, trained_by_steering(run), n=6)
    assert 1 <= len(pairs) <= 6
    prompts, before = answers_of(run, None, "train", 12, seed=1)
    assert [(p.prompt, p.a) for p in pairs] == [
        (p.prompt, before[prompts.index(p.prompt)]) for p in pairs
    ]
    assert all(pair.a != pair.b for pair in pairs)
    monkeypatch.setattr(Run, "load_policy", None)
    assert pairs_against(run, trained_by_steering(run), n=6) == pairs, "they are kept"


def test_habits_are_counted_before_and_after():
    table = habits(["Why?"] * 4, ["So it is.", "It is.", "No", "It was"], ["So it goes."] * 4)
    assert table.loc["commonest opening"].tolist() == [0.25, 1.0]
    assert table.loc["begins with “so it”"].tolist() == [0.25, 1.0]
    assert table.loc["nothing but “so it”"].tolist() == [0.0, 0.0]
    assert table.loc["ended"].tolist() == [0.5, 1.0]


def test_an_answer_of_one_word_is_told_from_one_that_only_begins_so():
    table = habits(
        ["Why?"] * 4, ["No, it isn't.", "So it is.", "It is.", "no"], ["No", "No.", "no", "No way."]
    )
    assert table.loc["begins with “no”"].tolist() == [0.5, 1.0]
    assert table.loc["nothing but “no”"].tolist() == [0.25, 0.75]


def test_gained_words():
    table = gained_words(["a b", "a c"], ["a d d", "d b"], n=1)
    assert table.index.tolist() == ["d"]
    assert table.loc["d"].tolist() == [0.0, 1.0, 1.0]


def test_win_rate_counts_ties_as_half():
    prompts, before = ["p"] * 4, ["Take 3.", "Some.", "Some.", "Some."]
    result = win_rate(prompts, before, ["Some.", "Take 3.", "Take 4.", "More."], "names a number")
    assert (result["n"], result["ties"], result["win_rate"]) == (4, 1, 0.625)


def test_judge_and_steer_in_a_terminal(monkeypatch, run_and_judge, capsys):
    run, _ = run_and_judge
    monkeypatch.setattr("rlhf_tutorial.human.steering_commands.UNLABELLED", 10)
    monkeypatch.setattr("rlhf_tutorial.presets.PRESETS", {"tiny": TINY})
    where = ["--preset", "tiny", "--output", str(run.folder)]
    with pytest.raises(SystemExit, match="no judge in"):
        main(["steer", *where])
    main(["judge", *where])
    said = capsys.readouterr().out
    assert "Learned from 12 labels" in said
    assert json.loads((run.folder / "human" / "judge" / "judge.json").read_text())["labels"] == 12
    main(["steer", *where, "--steps", "1"])
    said = capsys.readouterr().out
    assert "commonest opening" in said
    asked, now = answers_of(run, steered_policy(run), "train", 3)
    assert all(prompt in said for prompt in asked)
    assert all(" ".join(answer.split()) in said for answer in now)
    assert (run.folder / "human" / "policy" / "config.json").exists()
    # One step changes few answers of a policy as small as this one.
    policy = AutoModelForCausalLM.from_pretrained(run.folder / "human" / "policy")
    for weights in policy.parameters():
        weights.data.add_(0.5)
    policy.save_pretrained(run.folder / "human" / "policy")
    monkeypatch.setattr("builtins.input", lambda question: "l")
    main(["blind-test", *where, "--choices", "4"])
    said = capsys.readouterr().out
    assert "Of 4 choices" in said
    assert "The course's judge agreed with you" in said and "Your own judge agreed" in said


def test_a_simulated_reader_labels_what_it_is_asked(judged):
    run, _ = judged
    pairs = untouched_pairs(run, 12)
    order = iter([3, 1, 2])
    labels = label_pairs(
        pairs, SimulatedReader("short and concrete"), 3, lambda labels, pairs: next(order)
    )
    assert [label.pair for label in labels] == [pairs[3], pairs[1], pairs[2]]
