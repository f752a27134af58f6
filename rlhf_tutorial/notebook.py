"""Small helpers for the notebooks: quiet set-up, code on display, results in a sentence."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from collections.abc import Callable
from html import escape
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .errors import TutorialError


def setup() -> None:
    """Keep library progress bars out of the notebook: as widgets they leave only bulky state."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def show_source(function: Callable[..., Any]) -> Any:
    """The function's own source, highlighted: what is shown is what runs."""
    from IPython.display import Code

    return Code(inspect.getsource(function), language="python")


def folded(shown: Any, title: str) -> Any:
    """What is shown, folded away under a title until you open it: what is better guessed first."""
    from IPython.display import HTML

    return HTML(f"<details><summary>{escape(title)}</summary>{shown._repr_html_()}</details>")


def reveal(
    guess: Any, answer: Any, why: str, *, within: float | None = None, then: Any = None
) -> Any:
    """What this run answers, folded away until you open it, and whether your guess agrees.

    Args:
        guess: yours, or None.
        answer: this run's, a number or a word. Of words neither capitals nor a full stop count.
        why: in a sentence or two; plain text.
        within: how far from the answer a number may be and still agree, in the answer's own unit;
            twice as far is close. By default a fifth of the answer, at least 5 points if it is a
            share, and at least one half if it is a whole number: one off is close.
        then: a table that goes into the fold, because it tells the answer, too.
    """
    from IPython.display import HTML

    if guess is None:
        summary = "Make a guess first. Then open this: what the run says"
    else:
        verdict = _verdict(guess, answer, within)
        summary = f"You guessed {guess}, and {verdict}. Open this for the reason"
    shown = f"{answer:.3g}" if isinstance(answer, float) else str(answer)
    table = "" if then is None else then.to_html()
    return HTML(
        f"<details><summary>{escape(summary)}</summary>"
        f"<p><b>{escape(shown.removesuffix('.'))}.</b> {escape(why)}</p>{table}</details>"
    )


def _verdict(guess: Any, answer: Any, within: float | None) -> str:
    """What to say of a guess, see `reveal`."""
    if not (isinstance(guess, Real) and isinstance(answer, Real)):
        said, right = (str(word).strip().removesuffix(".").lower() for word in (guess, answer))
        return "the run agrees" if said == right else "the run disagrees"
    said_number, right_number = float(guess), float(answer)
    if within is None:
        whole = isinstance(answer, Integral)
        share = not whole and 0 <= right_number <= 1 and 0 <= said_number <= 1
        within = max(abs(right_number) / 5, 0.05 if share else 0.5 if whole else 0.0)
    off = abs(said_number - right_number) - 1e-9  # or 0.3 would be too far from 0.25
    if off <= within:
        return "the run agrees"
    return "that is close" if off <= 2 * within else "the run disagrees"


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks that were installed with the package; their links go to the repository.

    Raises:
        TutorialError: if none were (a clone has them), or one of them is in the folder already.
    """
    try:
        package = importlib.metadata.distribution("rlhf-tutorial")
    except importlib.metadata.PackageNotFoundError as error:
        raise TutorialError("rlhf-tutorial is not installed: pip install rlhf-tutorial") from error
    sources = [Path(str(f.locate())) for f in package.files or [] if f.suffix == ".ipynb"]
    if not sources:
        raise TutorialError(
            "no notebooks were installed with this rlhf-tutorial: they are in the folder "
            "'notebooks' of the repository that it was installed from"
        )
    urls = dict(url.split(", ") for url in package.metadata.get_all("Project-URL") or [])
    folder.mkdir(parents=True, exist_ok=True)
    targets = [folder / source.name for source in sorted(sources)]
    if there := [target for target in targets if target.exists()]:
        raise TutorialError(
            f"{there[0]} is there already, perhaps with your work in it: give another folder with "
            "--output"
        )
    for source, target in zip(sorted(sources), targets, strict=True):
        text = source.read_text(encoding="utf-8")
        page = f"]({urls['Repository']}/blob/v{package.version}/"
        target.write_text(text.replace("](../", page), encoding="utf-8", newline="\n")
    return targets


def headline(results: dict[str, Any]) -> str:
    """The numbers to remember: mean score before and after, and what the evaluating judge says."""
    if "comparison" not in results:
        return "No comparison yet: notebook 06 makes it."
    c = results["comparison"]
    gain, win = c["mean_gain_interval"], c["win_rate_interval"]
    second = c["second"]
    low, high = second["mean_gain_interval"]
    return (
        f"Mean score on {c['n']} held-out prompts: {c['mean_before']:.2f} before, "
        f"{c['mean_after']:.2f} after; gain {c['mean_gain']:.2f} "
        f"(95% interval {gain[0]:.2f} to {gain[1]:.2f}).\n"
        f"Win rate of the trained policy: {c['win_rate']:.1%} "
        f"(95% interval {win[0]:.1%} to {win[1]:.1%}).\n"
        f"By the evaluating judge, which PPO doesn't see: gain {second['mean_gain']:.2f} "
        f"({low:.2f} to {high:.2f}), win rate {second['win_rate']:.1%}."
    )
