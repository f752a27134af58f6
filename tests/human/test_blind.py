"""The blind test, and the commands, on the tiny preset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.__main__ import main
from rlhf_tutorial.errors import DataError
from rlhf_tutorial.human.blind import (
    PURPOSE,
    answers_before_and_after,
    blind_pairs,
    lift_veil,
    veil_lifted,
)
from rlhf_tutorial.human.labelling import Session
from rlhf_tutorial.human.labels import append_label, load_labels, load_pairs
from rlhf_tutorial.tiny import make_tiny_policy

ROWS = [{"prompt": f"p{i}", "before": f"old {i}", "after": f"new {i}"} for i in range(20)]


def longer(queries: list[str], responses: list[str]) -> list[float]:
    """Likes the even prompts' new answers, and the odd ones' old answers."""
    return [float(text.startswith("new") == (int(text[4:]) % 2 == 0)) for text in responses]


def same(queries: list[str], responses: list[str]) -> list[float]:
    return [1.0] * len(responses)


def chosen(tmp_path: Path, wishes: str) -> Session:
    """A blind test in which the reader wants, one after the other, n(ew), o(ld), t(ie), s(kip)."""
    pairs = blind_pairs(ROWS)
    test = Session(
        pairs, tmp_path / "labels.jsonl", policy="t", purpose=PURPOSE, repeats=False, limit=20
    )
    for wish in wishes:
        assert test.current is not None
        new = "left" if test.current.left.startswith("new") else "right"
        old = "right" if new == "left" else "left"
        test.choose({"n": new, "o": old, "t": "tie", "s": "skip"}[wish])
    return test


def test_the_veil_lifts_to_what_was_chosen(tmp_path: Path) -> None:
    test = chosen(tmp_path, "nnnnnooots")  # the first ten prompts in their order
    result = lift_veil(test.labels, ROWS, {"Own": longer, "Indifferent": same})
    counts = {key: result[key] for key in ("n", "after", "before", "ties", "win_rate")}
    assert counts == {"n": 9, "after": 5, "before": 3, "ties": 1, "win_rate": 5.5 / 9}
    low, high = result["win_rate_interval"]
    assert (low, high) == pytest.approx((0.3092, 0.8466), abs=1e-4)  # Wilson, 5.5 of 9
    # New 0, 2, 4 and old 5, 7 are what the judge likes as well.
    own = result["judges"]["Own"]
    assert (own["n"], own["agreed"]) == (8, 5)
    assert result["judges"]["Indifferent"] == {"n": 0, "agreed": 0}
    told = veil_lifted(result)
    assert "Of 9 choices 5 went to the trained policy" in told and "win rate 61%" in told
    assert "do not tell which" in told and "Own agreed with you 5 of 8 times" in told
    assert "Indifferent" not in told


def test_a_clear_win_is_told_as_one(tmp_path: Path) -> None:
    result = lift_veil(chosen(tmp_path, "n" * 20).labels, ROWS, {})
    assert result["win_rate"] == 1 and result["win_rate_interval"][0] > 0.8
    assert "do not tell" not in veil_lifted(result)


def test_other_labels_are_no_blind_test(tmp_path: Path) -> None:
    test = chosen(tmp_path, "n")
    with pytest.raises(DataError, match="nobody has chosen yet"):
        lift_veil([replace(label, purpose="train") for label in test.labels], ROWS, {})
    with pytest.raises(DataError, match="nobody has chosen yet"):
        lift_veil(test.labels, ROWS[1:], {})


def test_neither_name_nor_side_tells_which_is_new(tmp_path: Path) -> None:
    pairs = blind_pairs(ROWS * 10)
    assert 70 < sum(pair.a.startswith("new") for pair in pairs) < 130  # of 200
    test, left = chosen(tmp_path, ""), []
    while test.current is not None:
        left.append(test.current.left.startswith("new"))
        test.choose("tie")
    assert 3 < sum(left) < 17


# On the disk, and by command ------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of `tiny` with a "trained" policy: one whose last layer was moved."""
    preset = replace(load_preset("tiny"), prompts=64)
    run = Run(preset, tmp_path_factory.mktemp("run"))
    policy = run.load_policy()
    for weights in policy.pretrained_model.parameters():
        weights.data.add_(0.5)
    policy.save_pretrained(run.folder / "policy")
    return run


def test_answers_before_and_after_are_of_held_out_prompts_and_stay(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = answers_before_and_after(trained, trained.folder / "policy", 6)
    assert len(rows) == 6 and all(row["before"] != row["after"] for row in rows)
    assert {row["prompt"] for row in rows} <= set(trained.queries("test")["query"])
    monkeypatch.setattr(Run, "load_policy", None)
    assert answers_before_and_after(trained, trained.folder / "policy", 6) == rows
    (kept,) = (trained.folder / "human").glob("blind-*.jsonl")
    content = kept.read_bytes()
    kept.write_bytes(content[:-9])
    with pytest.raises(DataError, match="delete it, and others are drawn"):
        answers_before_and_after(trained, trained.folder / "policy", 6)
    kept.write_bytes(content)


def test_an_untrained_policy_has_no_blind_test(trained: Run, tmp_path: Path) -> None:
    trained.load_policy().save_pretrained(tmp_path / "same")
    with pytest.raises(DataError, match="answers as the untouched policy does"):
        answers_before_and_after(trained, tmp_path / "same", 3)


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    given = iter(words)
    monkeypatch.setattr("builtins.input", lambda _: next(given, "q"))


def test_the_commands_label_test_merge_and_forget(
    trained: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    run = ["--preset", "tiny", "--output", str(trained.folder)]
    path = trained.folder / "human" / "labels.jsonl"
    typed(monkeypatch, "l", "t", "q")
    main(["label", *run, "--pairs", "4"])
    typed(monkeypatch, "r", "r")
    main(["label", *run, "--pairs", "4"])
    labels = load_labels(path, "tiny, untouched")
    pool = load_pairs(path.parent / "pairs-8-0.jsonl")
    assert {label.pair.key for label in labels} < {pair.key for pair in pool}
    assert len(labels) == 4 and {label.rater for label in labels} == {"you"}
    assert "stay in" in capsys.readouterr().out

    typed(monkeypatch, "l", "r", "l")
    main(["blind-test", *run, "--choices", "3", "--rater", "me"])
    printed = capsys.readouterr().out
    assert "Of 3 choices" in printed and "The course's judge agreed" in printed
    tested = load_labels(path)[4:]
    assert {(x.purpose, x.rater) for x in tested} == {("blind test", "me")}
    assert all(x.policy.startswith("tiny, trained (") for x in tested)

    other = tmp_path / "friend.jsonl"
    for label in labels:
        append_label(other, replace(label, rater="friend"))
    main(["label", *run, "--merge", str(other)])
    printed = capsys.readouterr().out
    assert "4 labels taken into" in printed and "friend and you chose alike: 4 of 4" in printed
    main(["label", *run, "--merge", str(other)])
    assert "0 labels taken into" in capsys.readouterr().out and len(load_labels(path)) == 11
    other.write_text(
        json.dumps({**vars(labels[0]), "policy": "org/other, untouched"}) + "\n", encoding="utf-8"
    )
    before = path.read_bytes()
    with pytest.raises(SystemExit, match="error: .*'org/other, untouched'"):
        main(["label", *run, "--merge", str(other)])
    assert path.read_bytes() == before

    main(["label", *run, "--forget"])
    assert not path.parent.exists() and (trained.folder / "policy").exists()
    main(["label", *run, "--forget"])


def test_labels_of_ones_own_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_policy(tmp_path / "policy", ["Name a fruit that is red, please."] * 8)
    monkeypatch.setenv("RLHF_POLICY", str(tmp_path / "policy"))
    prompts = tmp_path / "mine.jsonl"
    mine = [f"Name {n} of my fruits." for n in range(6)]
    prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in mine), encoding="utf-8")
    run = ["--preset", "tiny", "--output", str(tmp_path / "run"), "--data", str(prompts)]
    typed(monkeypatch, "l", "t", "r")
    main(["label", *run, "--pairs", "3", "--in-order"])
    labels = load_labels(tmp_path / "run" / "human" / "labels.jsonl")
    pairs = load_pairs(tmp_path / "run" / "human" / "pairs-3-0.jsonl")
    assert [label.pair for label in labels] == pairs
    assert {label.prompt for label in labels} <= set(mine) and len(labels) == 3
    assert {label.policy for label in labels} == {f"{tmp_path / 'policy'}, untouched"}
    main(["judge", *run])
    monkeypatch.setattr(Run, "train", None)
    with pytest.raises(SystemExit, match="error: .*mine.jsonl is one file.*'test'"):
        main(["steer", *run])  # before it trains
    with pytest.raises(SystemExit):
        main(["label", *run, "--pairs", "none"])
    assert "'none' is no such number: give 1 or more" in capsys.readouterr().err


def test_ones_own_prompts_and_policy_from_labels_to_the_blind_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny_policy(tmp_path / "policy", ["Name a fruit that is red, please."] * 8)
    monkeypatch.setenv("RLHF_POLICY", str(tmp_path / "policy"))
    monkeypatch.setattr("rlhf_tutorial.human.steering_commands.UNLABELLED", 10)
    (tmp_path / "mine").mkdir()
    mine = {"train": "Name {} of my fruits.", "test": "Eat {} of my fruits."}
    for split, form in mine.items():
        lines = (json.dumps({"prompt": form.format(n)}) + "\n" for n in range(20))
        (tmp_path / "mine" / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    run = ["--preset", "tiny", "--output", str(tmp_path / "run"), "--data", str(tmp_path / "mine")]
    typed(monkeypatch, "l", "r", "l", "r", "t", "l")
    main(["label", *run, "--pairs", "6"])
    main(["judge", *run])
    main(["steer", *run, "--steps", "1"])
    printed = capsys.readouterr().out
    assert "Learned from 6 labels" in printed and "commonest opening" in printed
    steered = tmp_path / "run" / "human" / "policy"
    policy = AutoModelForCausalLM.from_pretrained(steered)
    for weights in policy.parameters():
        weights.data.add_(0.5)  # one step changes few answers
    policy.save_pretrained(steered)
    typed(monkeypatch, "l", "r")
    main(["blind-test", *run, "--choices", "2"])
    printed = capsys.readouterr().out
    assert "Of 2 choices" in printed and "Your own judge agreed" in printed
    tested = [x for x in load_labels(steered.parent / "labels.jsonl") if x.purpose == "blind test"]
    assert {x.prompt for x in tested} <= {mine["test"].format(n) for n in range(20)}
    assert {x.policy.split(", trained")[0] for x in tested} == {str(tmp_path / "policy")}
