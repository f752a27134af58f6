"""A judge from one's labels, and a policy from the judge: python -m rlhf_tutorial judge|steer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .commands import at_least_one

# As in commands.py, nothing that needs torch is loaded before it is asked for.
if TYPE_CHECKING:
    from ..run import Run

UNLABELLED = 100
"""Pairs that nobody labels: what the judge's features are found in, and what shows its taste."""
SHOWN = 3
"""Training prompts whose answers `steer` prints."""


def add_commands(commands: Any, for_stage: argparse.ArgumentParser) -> None:
    """Add them to the subparsers; each leaves a function of the run and the arguments in `call`."""
    parser = commands.add_parser(
        "judge", parents=[for_stage], help=judge.__doc__, description=judge.__doc__
    )
    parser.add_argument("--rater", help="learn from this rater's labels alone; default: from all")
    parser.set_defaults(call=judge)

    parser = commands.add_parser(
        "steer", parents=[for_stage], help=steer.__doc__, description=steer.__doc__
    )
    parser.add_argument("--steps", type=at_least_one, help="of PPO; default: 40")
    parser.set_defaults(call=steer)


def judge(run: Run, args: argparse.Namespace) -> None:
    """Fit a judge to your labels, and show what it has learned."""
    from tqdm import tqdm

    from ..errors import DataError
    from .judge import (
        BayesianJudge,
        cross_validated_agreement,
        judge_folder,
        kept_features,
        lessons,
        state_reader,
    )
    from .labels import labels_of, labels_path, policy_name, untouched_pairs
    from .learned import extremes, liked_words, plain_causes

    labels = [each for each in labels_of(run) if args.rater in (None, each.rater)]
    if not lessons(labels):
        raise DataError(f"there are no labels in {labels_path(run)} to learn from: `label` first")
    unlabelled = untouched_pairs(run, UNLABELLED, seed=1, progress=tqdm)
    features = kept_features(judge_folder(run), state_reader(run, tqdm), unlabelled)
    agreement = cross_validated_agreement(features, labels)
    fitted = BayesianJudge.fit(features, labels, policy_name(run))
    fitted.save_pretrained(judge_folder(run))
    print(f"Learned from {fitted.labels} labels. On prompts that it had not seen it chose as you")
    print(f"did in {agreement}.")
    if agreement.warning:
        print(f"Careful: {agreement.warning}.")
    prompts = [pair.prompt for pair in unlabelled] * 2
    texts = [pair.a for pair in unlabelled] + [pair.b for pair in unlabelled]
    scores = fitted(prompts, texts)
    words = liked_words(texts, scores)
    print(f"\nWords of the answers it likes: {', '.join(words.index[:8])}")
    print(f"and of those it does not: {', '.join(words.index[::-1][:8])}")
    causes = plain_causes(texts, scores)
    print(f"Correlation with length {causes['words']:.2f}, with ending {causes['ends']:.2f}.\n")
    for row in extremes(prompts, texts, scores, n=3).itertuples():
        print(f"{row.score:+.2f}  {row.prompt}\n       {' '.join(str(row.answer).split())}")
    print(f"\nThe judge is in {judge_folder(run)}; steer trains the policy against it.")


def steer(run: Run, args: argparse.Namespace) -> None:
    """Train the untouched policy against your judge, and show what it does to please."""
    from tqdm import tqdm

    from . import steering
    from .judge import BayesianJudge, judge_folder, state_reader
    from .labels import policy_name

    fitted = BayesianJudge.from_pretrained(judge_folder(run), state_reader(run), policy_name(run))
    prompts, before = steering.answers_of(run, None)  # first: it says if there are no such prompts
    steps = args.steps or steering.STEPS
    total = steering.steps_of(steering.steering_run(run, fitted, steps))
    with tqdm(total=total, desc="PPO", unit="step") as bar:
        for stats in steering.steer(run, fitted, steps):
            bar.set_postfix(score=stats["ppo/mean_scores"], kl=stats["objective/kl"])
            bar.update()
    policy = steering.steered_policy(run)
    _, after = steering.answers_of(run, policy)
    # Of training prompts, because the blind test asks about the others.
    asked, was = steering.answers_of(run, None, "train", SHOWN)
    _, now = steering.answers_of(run, policy, "train", SHOWN)
    for prompt, *answers in zip(asked, was, now, strict=True):
        print(prompt, *(" ".join(answer.split()) for answer in answers), sep="\n    ")
    print("\nBefore stands above after. Over held-out prompts:")
    print(steering.habits(prompts, before, after).round(2).to_string())
    print("\nWords that more answers have than before, by the share of answers with them:")
    print(steering.gained_words(before, after).round(2).to_string())
    print(f"\nThe policy is in {policy}; blind-test asks you whether it is better.")
