"""Labelling and the blind test in a terminal: python -m rlhf_tutorial label|blind-test."""

from __future__ import annotations

import argparse
import shutil
from typing import TYPE_CHECKING, Any

# Asked for --help, or by the doctor, this loads nothing that needs torch.
if TYPE_CHECKING:
    from ..run import Run


def add_commands(commands: Any, for_stage: argparse.ArgumentParser) -> None:
    """Add them to the subparsers; each leaves a function of the run and the arguments in `call`.

    Args:
        for_stage: the parser of the arguments that name a run.
    """
    rater = argparse.ArgumentParser(add_help=False)
    rater.add_argument(
        "--rater", default="you", help="a word that tells raters apart, no real name; default: you"
    )
    parser = commands.add_parser(
        "label", parents=[for_stage, rater], help=label.__doc__, description=label.__doc__
    )
    parser.add_argument("--pairs", type=at_least_one, default=40, help="how many; default: 40")
    parser.add_argument(
        "--steered",
        action="store_true",
        help="answers of the policy that steer left beside the untouched one's: the next round",
    )
    parser.add_argument(
        "--in-order",
        action="store_true",
        help="the same pairs for everyone, in place of those that would teach your judge most",
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--merge", nargs="+", metavar="FILE", help="take in others' labels, and say who agrees"
    )
    other.add_argument(
        "--forget", action="store_true", help="delete all labels, and what was learned from them"
    )
    parser.set_defaults(call=label)

    parser = commands.add_parser(
        "blind-test",
        parents=[for_stage, rater],
        help=blind_test.__doc__,
        description=blind_test.__doc__,
    )
    parser.add_argument("--choices", type=at_least_one, default=20, help="how many; default: 20")
    parser.add_argument(
        "--policy", help="folder of the trained one; default: what steer left, or else train"
    )
    parser.set_defaults(call=blind_test)


def label(run: Run, args: argparse.Namespace) -> None:
    """Choose between two answers of the untouched policy, pair after pair."""
    from tqdm import tqdm

    from .choice import active_session
    from .labelling import Session
    from .labels import labels_path, policy_name, untouched_pairs
    from .steering import pairs_against, trained_by_steering
    from .terminal import label_in_terminal

    path, n = labels_path(run), args.pairs
    if args.forget:
        if path.parent.exists():
            shutil.rmtree(path.parent)
        print(f"{path.parent} is deleted")
    elif args.merge:
        _merge(run, args.merge)
    else:
        if args.steered:
            trained = trained_by_steering(run)
            print("Both policies answer, a minute the first time ...")
            pairs, policy = pairs_against(run, trained, n), policy_name(run, trained)
            session = Session(pairs, path, policy=policy, rater=args.rater)
        elif args.in_order:
            pairs = untouched_pairs(run, n, progress=tqdm)
            session = Session(pairs, path, policy=policy_name(run), rater=args.rater)
        else:
            session = active_session(run, n, args.rater, progress=tqdm)
        label_in_terminal(session)
        print(f"\nYour labels stay in {path}; label --forget deletes them.")


def blind_test(run: Run, args: argparse.Namespace) -> None:
    """Choose between answers before and after training without knowing which is which."""
    from ..assets import as_source, resolve
    from .blind import PURPOSE, answers_before_and_after, blind_pairs, lift_veil, veil_lifted
    from .judge import SETTINGS_FILE, BayesianJudge, judge_folder, state_reader
    from .labelling import Session
    from .labels import labels_path, policy_name
    from .steering import steered_policy
    from .terminal import label_in_terminal

    steered = steered_policy(run)
    if args.policy is not None:
        trained = resolve(as_source(args.policy))
    else:
        trained = steered if steered.exists() else run.trained_policy()
    rows = answers_before_and_after(run, trained, args.choices)
    session = Session(
        blind_pairs(rows),
        labels_path(run),
        policy=policy_name(run, trained),
        rater=args.rater,
        purpose=PURPOSE,
        repeats=False,
    )
    label_in_terminal(session)
    if session.current is None:
        judges = {"The course's judge": run.load_reward()}
        if (judge_folder(run) / SETTINGS_FILE).exists():
            judges["Your own judge"] = BayesianJudge.from_pretrained(
                judge_folder(run), state_reader(run), policy_name(run)
            )
        print(veil_lifted(lift_veil(session.labels, rows, judges)))


def _merge(run: Run, files: list[str]) -> None:
    """Write the files' labels behind the run's own, each label once."""
    from .agreement import merge_labels, report
    from .labels import append_label, labels_path, load_labels, policy_name

    path = labels_path(run)
    own = load_labels(path)
    known = {policy_name(run), *(label.policy for label in own)}
    merged = merge_labels([*([path] if own else []), *files], known)
    new = [label for label in merged if label not in own]
    for each in new:
        append_label(path, each)
    print(f"{len(new)} labels taken into {path}, which now has {len(merged)}.\n{report(merged)}")


def at_least_one(text: str) -> int:
    """The number that an option gives; argparse says what is wrong with another text."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no such number: give 1 or more")
    return int(text)
