"""PPO from the untouched policy against the reader's own judge, and what the policy makes of it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, TutorialError
from ..evaluation.measures import commonest_opening, ends_in_sentence, text_measures, words
from ..models import AutoModelForCausalLMWithValueHead
from ..ppo import PPOConfig
from ..run import Run
from ..scores import Reward
from .judge import BayesianJudge
from .labels import Pair, digest_of, load_pairs, save_pairs

if TYPE_CHECKING:
    import pandas as pd

STEPS = 40
"""Of PPO: the default preset's prompts once."""
CUT_OFF = 1.0
"""What an answer loses that does not end within its room, in deviations of the judge's score."""

LEASH = 3.0
"""How many times the preset's KL weight steering takes.

The scores of a judge of one's own vary nearly twice as much as those of the course's judge, and it
has learned from far fewer choices: at the preset's weight the policy soon says one sentence to
everybody. At three times, 40 steps stayed below ten nats for two of three simulated tastes, and for
the third in two trainings of five (notebook 10).
"""


def whole_answers(judge: Reward, penalty: float = CUT_OFF) -> Reward:
    """The judge's score, less a penalty for an answer that does not end as a sentence does.

    That is what any answer owes, whatever else a reader likes. A few dozen choices need not say so,
    and a policy against a judge that does not know it soon writes nothing that ends.
    """

    def reward(queries: list[str], responses: list[str]) -> list[float]:
        scores = judge(queries, responses)
        return [
            score - penalty * (not ends_in_sentence(response))
            for score, response in zip(scores, responses, strict=True)
        ]

    return reward


def steering_run(run: Run, judge: BayesianJudge, steps: int = STEPS, **ppo: Any) -> Run:
    """The run of a training against this judge, in a folder of its own below the run's `human/`.

    Its prompts are as many of the run's as the steps need. Where there are not enough they come
    again, and as passes are whole, there may be a few steps more.

    Args:
        ppo: the fields of `PPOConfig` that go before the preset's: with others it is another run.
    """
    config = PPOConfig(**run.preset.ppo)
    batch = config.batch_size
    available = max(1, len(run.queries("train")) // batch)
    epochs = -(-steps // available)
    # Half of the untouched answers are cut off, and the judge's mean score is 0.
    start = None if run.preset.value_head_start is None else -CUT_OFF / 2
    prompts = -(-steps // epochs) * batch
    preset = replace(
        run.preset,
        prompts=prompts,
        epochs=epochs,
        value_head_start=start,
        ppo={**run.preset.ppo, "init_kl_coef": LEASH * config.init_kl_coef},
    )
    told = judge.posterior.mean.numpy().tobytes()
    told += repr(sorted({**preset.ppo, **ppo}.items())).encode()
    taught = hashlib.sha256(told).hexdigest()[:8]
    return Run(preset, run.folder / "human" / "steering" / f"judge-{taught}-steps-{steps}")


def steps_of(steered: Run) -> int:
    """How many steps of PPO a `steering_run` takes."""
    batch = PPOConfig(**steered.preset.ppo).batch_size
    return steered.preset.epochs * (len(steered.queries("train")) // batch)


def steer(
    run: Run, judge: BayesianJudge, steps: int = STEPS, **ppo: Any
) -> Iterator[dict[str, Any]]:
    """Train the untouched policy against the judge, yielding the stats of each step.

    Used up, it has left the policy in `steered_policy`, in place of an earlier one. Stopped, it
    goes on where it was when it is started again; what is finished is not done again.

    Args:
        ppo: fields of `PPOConfig` in place of the preset's and of `LEASH`.
    """
    steered, policy = steering_run(run, judge, steps, **ppo), steered_policy(run)
    told = policy / "steered.txt"
    if told.exists() and told.read_text(encoding="utf-8") == steered.folder.name:
        yield from steered.stats()
        return
    yield from steered.train(steered.make_trainer(**ppo), whole_answers(judge))
    (steered.folder / "policy" / told.name).write_text(steered.folder.name, encoding="utf-8")
    shutil.rmtree(policy, ignore_errors=True)
    (steered.folder / "policy").rename(policy)


def steered_policy(run: Run) -> Path:
    """Where the policy is that was steered last."""
    return run.folder / "human" / "policy"


def trained_by_steering(run: Run) -> Path:
    """`steered_policy`, which must be there.

    Raises:
        TutorialError: if it is not.
    """
    folder = steered_policy(run)
    if not folder.exists():
        raise TutorialError(f"there is no policy in {folder}: train one with `steer` first")
    return folder


def answers_of(
    run: Run, policy: str | Path | None, split: str = "test", n: int | None = None, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Prompts of a split, and a policy's answers to them at the run's temperature.

    Args:
        policy: its folder; None for the untouched one.
        n: how many prompts, from the first on; by default the preset's `comparison_prompts`.
    """
    queries = run.queries(split)
    queries = queries.select(range(min(n or run.preset.comparison_prompts, len(queries))))
    model = (
        run.load_policy()
        if policy is None
        else AutoModelForCausalLMWithValueHead.from_pretrained(policy)
    )
    texts = run.answers(model, queries["input_ids"][:], seed)
    return queries["query"][:], texts


def pairs_against(run: Run, policy: str | Path, n: int = 12, seed: int = 1) -> list[Pair]:
    """Answers of the untouched policy (a) and of a trained one (b) to the same training prompts.

    Prompts to which both say the same are left out. A `Session` draws the sides. They are kept in
    the run's folder: the same call, of the same weights, gives the same pairs again.

    Raises:
        DataError: where both say the same to every prompt.
    """
    path = run.folder / "human" / f"against-{digest_of(policy)}-{n}-{seed}.jsonl"
    if not path.exists():
        prompts, before = answers_of(run, None, "train", 2 * n, seed)
        _, after = answers_of(run, policy, "train", 2 * n, seed)
        each = zip(prompts, before, after, strict=True)
        pairs = [Pair(prompt, a, b) for prompt, a, b in each if a != b][:n]
        if not pairs:
            raise DataError(f"{policy} answers as the untouched policy does: train it for longer")
        save_pairs(pairs, path)
    return load_pairs(path)


# The arms race: what the policy now does to please ------------------------------------------------


def habits(prompts: Sequence[str], before: Sequence[str], after: Sequence[str]) -> pd.DataFrame:
    """What can be counted in answers before and after: a row a measure, a column for each time.

    Besides `text_measures`: "commonest opening", the share of the commonest first two words; and of
    the later commonest opening, a single word where answers are no longer, "begins with" it, the
    share of the answers of either time that begin so, and "nothing but" it, the share that say no
    more.
    """
    import pandas as pd

    opening, _ = commonest_opening(after)
    first = words(opening)
    columns = {}
    for when, texts in (("before", before), ("after", after)):
        said = [words(text) for text in texts]
        columns[when] = {
            **text_measures(prompts, texts),
            "commonest opening": commonest_opening(texts)[1],
            f"begins with “{opening}”": sum(w[: len(first)] == first for w in said) / len(said),
            f"nothing but “{opening}”": said.count(first) / len(said),
        }
    return pd.DataFrame(columns)


def gained_words(before: Sequence[str], after: Sequence[str], n: int = 10) -> pd.DataFrame:
    """The n words that most more answers have after than before: the share of answers with each."""
    import pandas as pd

    shares = {
        when: pd.Series([word for text in texts for word in set(words(text))]).value_counts()
        / len(texts)
        for when, texts in (("before", before), ("after", after))
    }
    table = pd.DataFrame(shares).fillna(0.0)
    table["gain"] = table["after"] - table["before"]
    return table.sort_values("gain", ascending=False, kind="stable").head(n)
