"""How many labels a taste needs, by active and by random choice: simulated readers label a pool."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..assets import Bundled, resolve
from ..evaluation.intervals import bootstrap_interval, two_way_interval
from ..evaluation.measures import commonest_opening, text_measures
from ..feedback import Row
from .judge import Agreement, BayesianJudge, Features, agreement_of, choice_values
from .labels import Label, NextPair, Pair
from .readers import TASTES, SimulatedReader, preferred

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

FROM_COURSE = "random, from the course's judge"
"""The committed curves of judges that may begin with the course's: see `BayesianJudge.fit`."""
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
    features: Features,
    labels: Sequence[Label],
    pairs: Sequence[Pair],
    taste: str,
    every: int = 10,
    prior_mean: Tensor | None = None,
) -> list[dict[str, float]]:
    """The agreement on held-out pairs after each so many labels.

    Args:
        prior_mean: as for `BayesianJudge.fit`.

    Returns:
        Rows of "labels", "told" (of them no ties) and "agreement".
    """
    rows = []
    for n in range(every, len(labels) + 1, every):
        judge = BayesianJudge.fit(features, labels[:n], "", prior_mean)
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


def labels_needed_table(
    panels: Mapping[str, Curves], shares: Sequence[float] = (0.7, 0.75)
) -> pd.DataFrame:
    """How many labels each taste takes to an agreement: the median of the seeds, and their range.

    Returns:
        A row a taste and a way of choosing, a column a share, as text: "50 (30 to over 200)", with
        "over 200" for a curve of so many labels that never gets there (see `labels_needed`).
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, str]] = {}
    for taste, curves in panels.items():
        for way, seeds in curves.items():
            end = seeds[0][-1]["labels"]
            rows[taste, way] = {}
            for share in shares:
                needed = [labels_needed(curve, share) or np.inf for curve in seeds]
                median, least, most = (
                    f"{n:.0f}" if n <= end else f"over {end:.0f}"
                    for n in (np.median(needed), min(needed), max(needed))
                )
                rows[taste, way][f"{share:.0%}"] = f"{median} ({least} to {most})"
    return pd.DataFrame.from_dict(rows, orient="index")


def wins(
    prompts: Sequence[str], before: Sequence[str], after: Sequence[str], taste: str
) -> np.ndarray:
    """(N,), 1 where a taste prefers the later answer, without errors, 0 the earlier, 1/2 a tie."""
    values = {"b": 1.0, "tie": 0.5, "a": 0.0}
    pairs = [Pair(*each) for each in zip(prompts, before, after, strict=True)]
    return np.array([values[preferred(TASTES[taste], pair)] for pair in pairs])


def win_rate(
    prompts: Sequence[str], before: Sequence[str], after: Sequence[str], taste: str
) -> dict[str, Any]:
    """How often a taste prefers the later answer, without errors; a tie is half a win.

    Returns:
        "n", "win_rate", "win_rate_interval" (95%, a bootstrap over prompts) and "ties".
    """
    won = wins(prompts, before, after, taste)
    return {
        "n": len(won),
        "win_rate": float(won.mean()),
        "win_rate_interval": list(bootstrap_interval(won)),
        "ties": int((won == 0.5).sum()),
    }


Curves = dict[str, list[list[dict[str, float]]]]
"""By the way of choosing a learning curve for each seed, as `learning_curve` gives it."""


def committed_curves() -> dict[str, Curves]:
    """The learning curves that `scripts/human.py labels` left in the package, by taste."""
    return {result["taste"]: result["curves"] for result in _committed("labels")}


TRAINED = {"first round": "steer", "second round": "again", "at the preset's KL weight": "pushed"}
"""What `committed_steering` calls a training, and what the files of its results begin with."""


def committed_steering() -> pd.DataFrame:
    """What `scripts/human.py` left in the package of steering, and of what takes no training.

    Returns:
        A row a taste and a way: the trainings, "first round" (80 labels), "second round" (twelve
        more, on what the first policy does) and "at the preset's KL weight" (`steering.LEASH` 1);
        and the controls, "system message", "first sentence" and "best of 4" (by the judge of the
        first round). Columns: "seeds"; "win_rate" against the untouched policy's answers, and "low"
        to "high", its 95% interval over prompts and seeds; "worst" and "best" of a seed; the mean
        number of "words"; the shares of answers that end, "ended", and that begin with the
        commonest two words, "opening"; and for a policy that was trained its "kl" in nats per
        answer, the "agreement" of its judge with the taste on held-out pairs, and its "gain" under
        the course's judge.
    """
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, float]] = {}
    for taste in TASTES:
        ways: dict[str, list[tuple[list[str], list[str], list[str]]]] = {}
        extras: dict[str, dict[str, float]] = {}
        for way, name in TRAINED.items():
            if found := [result for result in _committed(name) if result["taste"] == taste]:
                ways[way] = [
                    (one["queries"], one["before"]["answers"], one["after"]["answers"])
                    for one in found
                ]
                extras[way] = {
                    "kl": float(np.mean([one["after"]["kl"] for one in found])),
                    "agreement": float(np.mean([np.divide(*one["agreement"]) for one in found])),
                    "gain": float(np.mean([_course_gain(one) for one in found])),
                }
        for one in _committed("controls"):
            for way, control in one["ways"][taste].items():
                compared = (one["queries"], one["before"], control["answers"])
                ways.setdefault(way, []).append(compared)
        for way, seeds in ways.items():
            won = np.array([wins(*compared, taste) for compared in seeds])
            measures = [text_measures(prompts, after) for prompts, _, after in seeds]
            low, high = two_way_interval(won.T)
            rows[taste, way] = {
                "seeds": len(seeds),
                "win_rate": float(won.mean()),
                "low": low,
                "high": high,
                "worst": float(won.mean(axis=1).min()),
                "best": float(won.mean(axis=1).max()),
                "words": float(np.mean([measured["words"] for measured in measures])),
                "ended": float(np.mean([measured["ended"] for measured in measures])),
                "opening": float(np.mean([commonest_opening(after)[1] for _, _, after in seeds])),
                **extras.get(way, {}),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _course_gain(result: Mapping[str, Any]) -> float:
    after, before = (result[when]["scores"]["course"] for when in ("after", "before"))
    return float(np.mean(np.subtract(after, before)))


def _committed(what: str) -> list[dict[str, Any]]:
    """The results in the package, in the order of their names."""
    paths = sorted(resolve(Bundled("human")).glob(f"{what}_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
