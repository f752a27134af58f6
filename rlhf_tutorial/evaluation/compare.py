"""The same prompts answered before and after training: scores, gains, and their intervals."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError
from ..scores import Reward, checked_scores
from .intervals import bootstrap_interval

if TYPE_CHECKING:
    import pandas as pd


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a comparison as CSV, texts in quotes: one may hold a lone carriage return."""
    table.to_csv(path, index=False, quoting=csv.QUOTE_NONNUMERIC)


def load_table(path: Path) -> pd.DataFrame:
    """Read what `save_table` wrote; an answer "NA", or an empty one, is a text."""
    import pandas as pd

    return pd.read_csv(path, keep_default_na=False)


def compare(
    prompts: list[str],
    responses_before: list[str],
    responses_after: list[str],
    reward: Reward,
    second_judge: Reward | None = None,
) -> pd.DataFrame:
    """Score both responses to each prompt.

    Returns:
        One row per prompt: query, response_before, response_after, score_before, score_after and
        gain, which is score_after - score_before; with a second judge its second_before,
        second_after and second_gain.

    Raises:
        DataError: for no prompts, or lists of unequal length.
        RewardError: unless the reward gives one finite number per response.
    """
    import pandas as pd

    if not prompts or not len(prompts) == len(responses_before) == len(responses_after):
        raise DataError(
            f"{len(prompts)} prompts, {len(responses_before)} responses before and "
            f"{len(responses_after)} after: give one of each per prompt, and at least one prompt"
        )
    table = pd.DataFrame(
        {
            "query": prompts,
            "response_before": responses_before,
            "response_after": responses_after,
            "score_before": checked_scores(reward(prompts, responses_before), len(prompts)),
            "score_after": checked_scores(reward(prompts, responses_after), len(prompts)),
        }
    )
    table["gain"] = table["score_after"] - table["score_before"]
    if second_judge is not None:
        for when, responses in (("before", responses_before), ("after", responses_after)):
            scores = checked_scores(second_judge(prompts, responses), len(prompts))
            table[f"second_{when}"] = scores
        table["second_gain"] = table["second_after"] - table["second_before"]
    return table


def summarise(table: pd.DataFrame, judge: str = "score", seed: int = 0) -> dict[str, Any]:
    """The comparison in numbers, ready for JSON; each interval is a [low, high] at 95%.

    The bootstrap resamples prompts, each with all of its scores: rows of one prompt, from several
    training runs above all, stay together. The interval of the mean gain is thus the paired one:
    how hard the prompts are, which both policies share, cancels out of it. A tie counts as half a
    win; the number of ties is given as well. The intervals cover the choice of prompts
    and the sampling of answers, not how far training runs differ: that is `gains_by_seed`.

    Args:
        table: from `compare`, or several of them one below the other.
        judge: "score" for the training judge, "second" for the evaluating one.

    Returns:
        n (of different prompts), mean_before, mean_after, mean_gain, win_rate, and each of these
        four again with `_interval`; std_before, median_before, median_after, ties.
    """
    before, after = table[f"{judge}_before"], table[f"{judge}_after"]
    each = table[["query"]].assign(
        mean_before=before,
        mean_after=after,
        mean_gain=after - before,
        win_rate=(after > before) + 0.5 * (after == before),
    )
    prompts = each.groupby("query", sort=False).mean()
    summary: dict[str, Any] = {"n": len(prompts)}
    for name in prompts.columns:
        values = prompts[name].to_numpy()
        summary[name] = float(values.mean())
        summary[f"{name}_interval"] = list(bootstrap_interval(values, seed=seed))
    summary["std_before"] = float(before.std())
    summary["median_before"] = float(before.median())
    summary["median_after"] = float(after.median())
    summary["ties"] = int((after == before).sum())
    return summary


def gains_by_seed(table: pd.DataFrame, judge: str = "score") -> pd.Series:
    """The mean gain of each training run, of a table with a column `seed`.

    Their standard deviation says how far one run may lie from another. It holds the chance in the
    answers as well, but not the choice of prompts, which the runs share.
    """
    gains = table[f"{judge}_after"] - table[f"{judge}_before"]
    return gains.groupby(table["seed"]).mean()


def format_examples(
    table: pd.DataFrame,
    n: int = 5,
    pick: Literal["best", "random", "worst"] = "best",
    by: Literal["score_after", "gain"] = "score_after",
    seed: int = 0,
) -> str:
    """Prompts with both answers as text, one line each, a blank line between examples.

    Args:
        table: from `compare`.
        n: how many; fewer if the table is shorter.
        pick: "best" or "worst", from the extreme on. Both are selections: "random" (by `seed`)
            shows what is typical.
        by: what best and worst are told by, the score after training or its change.
    """
    n = min(n, len(table))
    if pick == "random":
        rows = table.sample(n, random_state=seed)
    else:
        rows = table.sort_values(by, ascending=pick == "worst", kind="stable").head(n)
    return "\n\n".join(
        f"prompt: {_one_line(query)}\n"
        f"answer (before): {_one_line(before)}\n"
        f"answer (after): {_one_line(after)}"
        for query, before, after in zip(
            rows["query"], rows["response_before"], rows["response_after"], strict=True
        )
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
