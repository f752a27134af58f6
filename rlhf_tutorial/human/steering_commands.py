"""A judge from one's labels, and a policy from the judge: python -m rlhf_tutorial judge|steer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

# As in commands.py, nothing that needs torch is loaded before it is asked for.
if TYPE_CHECKING:
    from ..run import Run

UNLABELLED = 100
"""Pairs that nobody labels: what the judge's features are found in, and what shows its taste."""


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
    parser.add_argument("--steps", type=_steps, help="of PPO; default: 40")
    parser.set_defaults(call=steer)


def judge(run: Run, args: argparse.Namespace) -> None:
    """Fit a judge to your labels, and show what it has learned."""
    from .judge import BayesianJudge, cross_validated_agreement, features_of, judge_folder
    from .labels import labels_of, policy_name, untouched_pairs
    from .learned import extremes, liked_words, plain_causes

    labels = [each for each in labels_of(run) if args.rater in (None, each.rater)]
    print("The judge reads answers, a minute the first time ...")
    unlabelled = untouched_pairs(run, UNLABELLED, seed=1)
    features = features_of(run, unlabelled)
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

    from .judge import BayesianJudge, judge_folder, state_reader
    from .labels import policy_name
    from .steering import STEPS, answers_of, gained_words, habits, steered_policy
    from .steering import steer as training

    fitted = BayesianJudge.from_pretrained(judge_folder(run), state_reader(run), policy_name(run))
    steps = args.steps or STEPS
    with tqdm(total=steps, desc="PPO", unit="step") as bar:
        for stats in training(run, fitted, steps):
            bar.set_postfix(score=stats["ppo/mean_scores"], kl=stats["objective/kl"])
            bar.update()
    prompts, before = answers_of(run, None)
    _, after = answers_of(run, steered_policy(run))
    print(habits(prompts, before, after).round(2).to_string())
    print("\nWords that more answers have than before, by the share of answers with them:")
    print(gained_words(before, after).round(2).to_string())
    print(f"\nThe policy is in {steered_policy(run)}; blind-test asks you whether it is better.")


def _steps(text: str) -> int:
    """A number of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of steps: give 1 or more")
    return int(text)
