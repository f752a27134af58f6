"""How many labels a taste needs, by active and by random choice: simulated readers label a pool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets import Bundled, resolve
from ..evaluation.intervals import bootstrap_interval
from ..feedback import Row
from .judge import Agreement, BayesianJudge, Features, agreement_of, choice_values
from .labels import Label, NextPair, Pair
from .readers import TASTES, SimulatedReader, preferred

if TYPE_CHECKING:
    import pandas as pd

EPOCH = datetime.fromtimestamp(0, UTC).isoformat()
"""The time of a label that nobody gave."""


def simulated_label(pair: Pair, choice: str, policy: str) -> Label:
    """A simulated reader's choice, as a label."""
    return Label(
        pair.prompt, pair.a, pair.b, left="a", choice=choice, seconds=0.0, time=EPOCH,
        rater="simulated", policy=policy,
    )  # fmt: skip


def pairs_of_rows(rows: Sequence[Row]) -> list[Pair]:
    """Every two different answers to a prompt, of graded answers; nobody looks at the grades."""
    return [
        Pair(row["prompt"], a["text"], b["text"])
        for row in rows
        for a, b in combinations(row["answers"], 2)
        if a["text"] != b["text"]
    ]


def label_pairs(
    pairs: Sequence[Pair], reader: SimulatedReader, n: int, next_pair: NextPair, policy: str = ""
) -> list[Label]:
    """The labels that a simulated reader gives, to the n pairs that `next_pair` chooses."""
    labels: list[Label] = []
    for _ in range(n):
        pair = pairs[next_pair(labels, list(pairs))]
        labels.append(simulated_label(pair, reader(pair), policy))
    return labels


def agreement_in_taste(judge: BayesianJudge, pairs: Sequence[Pair], taste: str) -> Agreement:
    """How often the judge chooses as the taste does, without errors; ties are left out."""
    wanted = [simulated_label(pair, preferred(TASTES[taste], pair), "") for pair in pairs]
    margins = judge.features.differences(pairs) @ judge.posterior.mean
    return agreement_of(margins, choice_values(wanted).double())


def learning_curve(
    features: Features, labels: Sequence[Label], pairs: Sequence[Pair], taste: str, every: int = 10
) -> list[dict[str, float]]:
    """The agreement on held-out pairs after each so many labels.

    Returns:
        Rows of "labels", "told" (of them no ties) and "agreement".
    """
    rows = []
    for n in range(every, len(labels) + 1, every):
        judge = BayesianJudge.fit(features, labels[:n], "")
        share = agreement_in_taste(judge, pairs, taste).share
        told = sum(label.choice != "tie" for label in labels[:n])
        rows.append({"labels": n, "told": told, "agreement": round(share, 4)})
    return rows


def labels_needed(curve: Sequence[Mapping[str, float]], share: float) -> float | None:
    """The first number of labels from which three agreements in a row are at this share.

    None if they never are.
    """
    for i in range(len(curve) - 2):
        if all(row["agreement"] >= share for row in curve[i : i + 3]):
            return curve[i]["labels"]
    return None


def win_rate(
    prompts: Sequence[str], before: Sequence[str], after: Sequence[str], taste: str
) -> dict[str, Any]:
    """How often a taste prefers the later answer, without errors; a tie is half a win.

    Returns:
        "n", "win_rate", "win_rate_interval" (95%, a bootstrap over prompts) and "ties".
    """
    values = {"b": 1.0, "tie": 0.5, "a": 0.0}
    pairs = [Pair(*each) for each in zip(prompts, before, after, strict=True)]
    wins = np.array([values[preferred(TASTES[taste], pair)] for pair in pairs])
    return {
        "n": len(wins),
        "win_rate": float(wins.mean()),
        "win_rate_interval": list(bootstrap_interval(wins)),
        "ties": int((wins == 0.5).sum()),
    }


Curves = dict[str, list[list[dict[str, float]]]]
"""By the way of choosing a learning curve for each seed, as `learning_curve` gives it."""


def committed_curves() -> dict[str, Curves]:
    """The learning curves that `scripts/human.py labels` left in the package, by taste."""
    return {result["taste"]: result["curves"] for result in _committed("labels")}


def committed_steering() -> pd.DataFrame:
    """What `scripts/human.py steer` left in the package: a row a taste, seeds taken together.

    Returns:
        "seeds"; "agreement" of the judges with the taste, on held-out pairs; "win_rate" with its
        95% interval "low" to "high", a bootstrap over trainings; "kl" in nats per answer; and the
        shares of answers that end, "ended_before" and "ended_after".
    """
    import pandas as pd

    rows = {}
    for taste in TASTES:
        if found := [result for result in _committed("steer") if result["taste"] == taste]:
            rates = [result["win_rate"] for result in found]
            low, high = bootstrap_interval(rates)
            ended = {
                f"ended_{when}": np.mean([result[when]["measures"]["ended"] for result in found])
                for when in ("before", "after")
            }
            rows[taste] = {
                "seeds": len(found),
                "agreement": np.mean([np.divide(*result["agreement"]) for result in found]),
                "win_rate": np.mean(rates),
                "low": low,
                "high": high,
                "kl": np.mean([np.mean(result["after"]["kl"]) for result in found]),
                **ended,
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _committed(what: str) -> list[dict[str, Any]]:
    """The results in the package, in the order of their names."""
    paths = sorted(resolve(Bundled("human")).glob(f"{what}_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
