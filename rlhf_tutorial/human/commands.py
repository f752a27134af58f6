"""Labelling and the blind test in a terminal: python -m rlhf_tutorial label|blind-test."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from ..run import Run
from .agreement import merge_labels, report
from .blind import PURPOSE, answers_before_and_after, blind_pairs, lift_veil, veil_lifted
from .labelling import Session
from .labels import append_label, labels_path, load_labels, policy_name, untouched_pairs
from .terminal import label_in_terminal


def add_commands(stages: Any, common: argparse.ArgumentParser) -> None:
    """Add them to the subparsers; each leaves a function of the run and the arguments in `call`."""
    rater = argparse.ArgumentParser(add_help=False)
    rater.add_argument(
        "--rater", default="you", help="a word that tells raters apart, no real name; default: you"
    )
    parser = stages.add_parser("label", parents=[common, rater], help=label.__doc__)
    parser.add_argument("--pairs", type=_count, default=40, help="how many; default: 40")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--merge", nargs="+", metavar="FILE", help="take in others' labels, and say who agrees"
    )
    other.add_argument(
        "--forget", action="store_true", help="delete all labels, and what was learned from them"
    )
    parser.set_defaults(call=label)

    parser = stages.add_parser("blind-test", parents=[common, rater], help=blind_test.__doc__)
    parser.add_argument("--choices", type=_count, default=20, help="how many; default: 20")
    parser.add_argument(
        "--policy", help="folder of the trained policy; default: what steer left, or else train"
    )
    parser.set_defaults(call=blind_test)


def label(run: Run, args: argparse.Namespace) -> None:
    """Choose between two answers of the untouched policy, pair after pair."""
    path = labels_path(run)
    if args.forget:
        shutil.rmtree(path.parent, ignore_errors=False) if path.parent.exists() else None
        print(f"{path.parent} is deleted")
    elif args.merge:
        _merge(run, args.merge)
    else:
        print("The untouched policy answers, a minute the first time ...")
        pairs = untouched_pairs(run, args.pairs)
        label_in_terminal(Session(pairs, path, policy=policy_name(run), rater=args.rater))
        print(f"\nYour labels stay in {path}; label --forget deletes them.")


def blind_test(run: Run, args: argparse.Namespace) -> None:
    """Choose between answers before and after training without knowing which is which."""
    steered = run.folder / "human" / "policy"
    trained = args.policy or (steered if steered.exists() else run.trained_policy())
    rows = answers_before_and_after(run, trained, args.choices)
    path = labels_path(run)
    session = Session(
        blind_pairs(rows),
        path,
        policy=policy_name(run, trained),
        rater=args.rater,
        purpose=PURPOSE,
        repeats=False,
    )
    label_in_terminal(session)
    if session.current is None:
        print(
            veil_lifted(lift_veil(session.labels, rows, {"The course's judge": run.load_reward()}))
        )


def _merge(run: Run, files: list[str]) -> None:
    """Write the files' labels behind the run's own, each label once."""
    path = labels_path(run)
    own = load_labels(path)
    known = {policy_name(run), *(label.policy for label in own)}
    merged = merge_labels([*([path] if own else []), *files], known)
    new = [label for label in merged if label not in own]
    for each in new:
        append_label(path, each)
    print(f"{len(new)} labels taken into {path}, which now has {len(merged)}.\n{report(merged)}")


def _count(text: str) -> int:
    """A number of at least 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of pairs: give 1 or more")
    return int(text)
