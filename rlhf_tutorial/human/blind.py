"""The blind test: answers before and after a training, and a reader who is not told which is which.

`blind_pairs` mixes them, a `Session` with purpose "blind test" asks, and `lift_veil` counts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, reason
from ..evaluation.intervals import accuracy_interval
from ..models import AutoModelForCausalLMWithValueHead
from ..run import Run
from ..scores import Reward, checked_scores
from .labels import Label, Pair, digest_of, replace_file

PURPOSE = "blind test"


def answers_before_and_after(
    run: Run, trained: str | Path, n: int, seed: int = 0
) -> list[dict[str, str]]:
    """Answers of the untouched and of a trained policy to held-out prompts, as both sample.

    They are kept in the run's folder: the same call, of the same weights, gives the same again.

    Args:
        trained: the policy's folder.

    Returns:
        Up to `n` rows of `prompt`, `before` and `after`; prompts to which both give the same answer
        are left out.

    Raises:
        DataError: where they differ nowhere, or what was kept is damaged.
    """
    path = run.folder / "human" / f"blind-{digest_of(trained)}-{n}-{seed}.jsonl"
    if path.exists():
        try:
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read the answers in {path} ({reason(error)}): delete it, and others are "
                "drawn"
            ) from error
    queries = run.queries("test")
    order = random.Random(seed).sample(range(len(queries)), len(queries))[: n + n // 2 + 4]
    queries = queries.select(order)
    input_ids = queries["input_ids"][:]
    before = run.answers(run.load_policy(), input_ids, seed)
    after = run.answers(AutoModelForCausalLMWithValueHead.from_pretrained(trained), input_ids, seed)
    texts = zip(queries["query"], before, after, strict=True)
    rows = [{"prompt": p, "before": b, "after": a} for p, b, a in texts if a != b][:n]
    if not rows:
        raise DataError(f"{trained} answers as the untouched policy does: train it first")
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    replace_file(path, text.encode())
    return rows


def blind_pairs(rows: Iterable[Mapping[str, str]], seed: int = 0) -> list[Pair]:
    """Rows of `prompt`, `before` and `after` as pairs, in an order that says nothing."""
    draw, pairs = random.Random(seed), []
    for row in rows:
        one, other = draw.sample([row["before"], row["after"]], 2)
        pairs.append(Pair(row["prompt"], one, other))
    return pairs


def lift_veil(
    labels: Iterable[Label],
    rows: Iterable[Mapping[str, str]],
    judges: Mapping[str, Reward],
) -> dict[str, Any]:
    """What the reader chose, now that it is told which answer came after the training.

    Args:
        labels: of any purpose: those of a blind test of these rows are taken.
        rows: `prompt`, `before`, `after`.
        judges: by name; each scores a list of responses to a list of prompts.

    Returns:
        `n` choices, `after` and `before` so often chosen, `ties`; `win_rate` of the later answers,
        a tie being half a win, and its `win_rate_interval`, Wilson's at 95%; and under `judges`,
        for each, of the choices that are no tie and whose answers it tells apart `n`, how often it
        `agreed`, and with any the `share` and its `interval`.

    Raises:
        DataError: without a choice.
    """
    known = {Pair(r["prompt"], r["before"], r["after"]).key: r for r in rows}
    chosen = [
        (label, known[label.pair.key])
        for label in labels
        if label.purpose == PURPOSE and label.choice != "skip" and label.pair.key in known
    ]
    if not chosen:
        raise DataError("nobody has chosen yet: run the blind test first")
    preferences = [_preference(label, row) for label, row in chosen]
    wins, ties = preferences.count(1), preferences.count(0)
    rate = (wins + ties / 2) / len(chosen)
    return {
        "n": len(chosen),
        "after": wins,
        "before": preferences.count(-1),
        "ties": ties,
        "win_rate": rate,
        "win_rate_interval": list(accuracy_interval(wins + ties / 2, len(chosen))),
        "judges": {
            name: _agreement(judge, [row for _, row in chosen], preferences)
            for name, judge in judges.items()
        },
    }


def veil_lifted(result: Mapping[str, Any]) -> str:
    """What `lift_veil` returns, in a few lines."""
    low, high = result["win_rate_interval"]
    lines = [
        f"Of {result['n']} choices {result['after']} went to the trained policy, "
        f"{result['before']} to the untouched one, and {result['ties']} were ties: "
        f"win rate {result['win_rate']:.0%} (95% interval {low:.0%} to {high:.0%})."
    ]
    if low <= 0.5 <= high:
        lines.append("So few choices do not tell which of the two is better.")
    for name, judge in result["judges"].items():
        if judge["n"]:
            low, high = judge["interval"]
            lines.append(
                f"{name} agreed with you {judge['agreed']} of {judge['n']} times, "
                f"{judge['share']:.0%} ({low:.0%} to {high:.0%})."
            )
    return "\n".join(lines)


def _preference(label: Label, row: Mapping[str, str]) -> int:
    """1 where the later answer was chosen, -1 for the earlier one, 0 for a tie."""
    if label.choice == "tie":
        return 0
    return 1 if (label.a if label.choice == "a" else label.b) == row["after"] else -1


def _agreement(
    judge: Reward, rows: Sequence[Mapping[str, str]], preferences: Sequence[int]
) -> dict[str, Any]:
    prompts = [row["prompt"] for row in rows]
    before, after = (
        checked_scores(judge(prompts, [row[when] for row in rows]), len(rows))
        for when in ("before", "after")
    )
    gains = [new - old for old, new in zip(before, after, strict=True)]
    told = [gain * p > 0 for gain, p in zip(gains, preferences, strict=True) if gain and p]
    if not told:
        return {"n": 0, "agreed": 0}
    interval = list(accuracy_interval(sum(told), len(told)))
    return {
        "n": len(told), "agreed": sum(told), "share": sum(told) / len(told), "interval": interval
    }  # fmt: skip
