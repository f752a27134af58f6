"""A judge of one's own: Bayesian logistic regression from the frozen trunk's states to choices.

It is the model of Bradley and Terry (1952) with a score that is linear in some dozens of features,
and a Gaussian prior on the weights. A few dozen choices do not settle that many weights, so the
judge keeps what they leave open: a Gaussian posterior, by Laplace's approximation (MacKay 1992,
"The Evidence Framework Applied to Classification Networks"). From it `choice` tells which pair to
ask about next.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError, ModelError, loading
from ..evaluation.intervals import accuracy_interval
from ..reward import StateReader
from ..reward.states import LAYERS
from ..run import Run
from ..scores import Reward, check_one_each, checked_scores
from ..template import CHAT
from .labels import Label, Pair

Reader = Callable[[list[str], list[str]], Tensor]
"""From queries and responses to (N, F) numbers, as a `StateReader`."""

COMPONENTS = 64
"""Principal components that a judge sees. On the course's grades, 16 to 128 do equally well."""
VARIANCES = tuple(10.0 ** (exponent / 2) for exponent in range(-6, 5))
"""Prior variances of a weight, from which the evidence chooses."""
SCALES = (0.5, 1.0, 2.0, 4.0)
"""What a point of another judge may be worth in log-odds of a choice, likewise."""
FOLDS = 10
FEATURES_FILE, ANSWERS_FILE = "features.safetensors", "answers.json"
POSTERIOR_FILE, SETTINGS_FILE = "posterior.safetensors", "judge.json"


# What a judge sees of an answer --------------------------------------------------------------


class Features:
    """An answer as some dozens of numbers, projected from what a reader makes of it, read once."""

    def __init__(self, reader: Reader, matrix: Tensor, centre: Tensor, spread: Tensor) -> None:
        """See `fit`.

        Args:
            matrix: (F, K), from the reader's numbers to the features.
            centre: (K,), the features' mean. spread: (K,), their mean square over differences.
        """
        self.reader, self.matrix, self.centre, self.spread = reader, matrix, centre, spread
        self._known: dict[tuple[str, str], Tensor] = {}

    @classmethod
    def fit(cls, reader: Reader, pairs: Sequence[Pair], components: int = COMPONENTS) -> Features:
        """The principal components of the differences between a pair's answers, largest first.

        The reader's numbers are first brought to mean square 1 over those differences. Nothing is
        labelled here: the pairs only say in which directions answers to one prompt differ. The
        first component has mean square 1, and the others less, as they vary less: under one prior
        for all weights, the judge leans on what differs most.

        Raises:
            DataError: where no two answers differ.
        """
        if all(pair.a == pair.b for pair in pairs):
            raise DataError("there are no pairs of different answers: give some dozens at least")
        asked, answers, places = _each_answer_once(pairs)
        read = reader(asked, answers)
        states = read[places]
        differences = (states[: len(pairs)] - states[len(pairs) :]).double()
        scale = differences.square().mean(dim=0).sqrt() + 1e-6
        _, sizes, directions = torch.linalg.svd(differences / scale, full_matrices=False)
        kept = min(components, int((sizes > 1e-6 * sizes[0]).sum()))
        matrix = directions[:kept].T / scale[:, None] * (len(pairs) ** 0.5 / sizes[0])
        centre, spread = states.double().mean(dim=0) @ matrix, (sizes[:kept] / sizes[0]) ** 2
        features = cls(reader, matrix, centre, spread)
        features._remember(asked, answers, read)
        return features

    def __call__(self, queries: list[str], responses: list[str]) -> Tensor:
        """(N, K), in float64."""
        check_one_each(queries, responses)
        keys = list(zip(queries, responses, strict=True))
        if unread := [key for key in dict.fromkeys(keys) if key not in self._known]:
            asked, answers = map(list, zip(*unread, strict=True))
            self._remember(asked, answers, self.reader(asked, answers))
        return torch.stack([self._known[key] for key in keys])

    def differences(self, pairs: Sequence[Pair]) -> Tensor:
        """Features of a less those of b, (N, K)."""
        if not pairs:
            return torch.zeros(0, len(self.centre)).double()
        prompts, a, b = _columns(pairs)
        both = self(prompts + prompts, a + b)
        return both[: len(pairs)] - both[len(pairs) :]

    def save(self, folder: str | Path) -> None:
        """Leave the projection in a folder, and the features of the answers that were read."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        answers = json.dumps(list(self._known), ensure_ascii=False)
        (folder / ANSWERS_FILE).write_text(answers + "\n", encoding="utf-8")
        rows = torch.stack(list(self._known.values()))
        tensors = {"matrix": self.matrix, "centre": self.centre, "spread": self.spread}
        save_file(
            {**{name: t.contiguous() for name, t in tensors.items()}, "rows": rows},
            folder / FEATURES_FILE,  # last, because this file says that they are there
        )

    @classmethod
    def load(cls, folder: str | Path, reader: Reader) -> Features:
        """The features that `save` left in a folder, on the reader that they were fitted on."""
        from safetensors.torch import load_file

        folder = Path(folder)
        with loading(folder):
            tensors = load_file(folder / FEATURES_FILE)
            answers = json.loads((folder / ANSWERS_FILE).read_text(encoding="utf-8"))
            rows = tensors.pop("rows")
            features = cls(reader, **tensors)
            features._known = dict(zip(map(tuple, answers), rows, strict=True))
        return features

    def _remember(self, queries: list[str], responses: list[str], states: Tensor) -> None:
        rows = states.double() @ self.matrix - self.centre
        self._known |= dict(zip(zip(queries, responses, strict=True), rows, strict=True))


def state_reader(run: Run, progress: Callable[..., Iterable[int]] | None = None) -> StateReader:
    """A reader of the run's own policy, as it is before training; `progress` as for `StateReader`.

    It reads SmolLM2's layers `reward.states.LAYERS`, and of a policy of another depth those that
    lie as deep. Where the policy has no chat template, it reads by the run's own.
    """
    model, tokenizer = run.load_policy().pretrained_model, run.load_tokenizer()
    depth = model.config.get_text_config().num_hidden_layers
    layers = sorted({max(1, round(layer / 30 * depth)) for layer in LAYERS})
    template = CHAT if tokenizer.chat_template else run.preset.template
    return StateReader(model, tokenizer, layers, template=template, progress=progress)


def judge_folder(run: Run) -> Path:
    """Where a run's own judge is."""
    return run.folder / "human" / "judge"


def kept_features(folder: Path, reader: Reader, pairs: Sequence[Pair]) -> Features:
    """The features in a folder; where it has none, those of these pairs, which are kept there."""
    if not (folder / FEATURES_FILE).exists():
        Features.fit(reader, pairs).save(folder)
    return Features.load(folder, reader)


def _columns(pairs: Sequence[Pair]) -> tuple[list[str], list[str], list[str]]:
    return [p.prompt for p in pairs], [p.a for p in pairs], [p.b for p in pairs]


def _each_answer_once(pairs: Sequence[Pair]) -> tuple[list[str], list[str], list[int]]:
    """Prompts and answers without repetition, for an answer is in many pairs; and where all of the
    pairs' a, and then all of their b, are among them."""
    prompts, a, b = _columns(pairs)
    keys = list(zip(prompts + prompts, a + b, strict=True))
    place = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return [key[0] for key in place], [key[1] for key in place], [place[key] for key in keys]


# What choices say of the weights -------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """A Gaussian over the weights."""

    mean: Tensor
    """(K,)"""
    covariance: Tensor
    """(K, K)"""
    log_evidence: float
    """Log-probability of the choices under the prior, by Laplace's approximation."""


def fit_posterior(
    differences: Tensor, choices: Tensor, variance: float, prior_mean: Tensor | None = None
) -> Posterior:
    """Laplace's approximation: a Gaussian around the most probable weights w, found by Newton.

    With m the prior's mean, they maximise sum_i y_i log sigma(w d_i) + (1 - y_i) log sigma(-w d_i)
    - |w - m|^2 / (2 variance); the covariance is the inverse of the second derivatives there
    (MacKay 1992).

    Args:
        differences: (N, K), features of a less those of b.
        choices: (N,), 1 for a, 0 for b, 1/2 for a tie: half a choice to each side.
        variance: of the Gaussian prior of each weight.
        prior_mean: (K,), where those Gaussians stand; by default at 0.
    """
    d, y = differences.double(), choices.double()
    start = torch.zeros(d.shape[1]).double() if prior_mean is None else prior_mean.double()
    weights, identity = start, torch.eye(len(start)).double()

    def loss(w: Tensor) -> Tensor:
        margins = d @ w
        log_likelihood = y * F.logsigmoid(margins) + (1 - y) * F.logsigmoid(-margins)
        return (w - start).square().sum() / (2 * variance) - log_likelihood.sum()

    value = loss(weights)
    for _ in range(100):  # the loss is convex: some five steps do
        p = torch.sigmoid(d @ weights)
        gradient = (weights - start) / variance - d.T @ (y - p)
        curvature = d.T @ ((p * (1 - p))[:, None] * d) + identity / variance
        step, rate = torch.linalg.solve(curvature, gradient), 1.0
        decrement = float(gradient @ step)
        if decrement < 1e-12:
            break
        while rate > 1e-9 and loss(weights - rate * step) > value - rate * decrement / 4:
            rate /= 2
        weights = weights - rate * step
        value = loss(weights)
    factor = torch.linalg.cholesky(curvature)
    occam = float(factor.diagonal().log().sum()) + 0.5 * len(weights) * math.log(variance)
    return Posterior(weights, torch.cholesky_inverse(factor), -float(value) - occam)


def fit_with_evidence(
    differences: Tensor, choices: Tensor, prior_mean: Tensor | None = None
) -> Posterior:
    """The posterior under the prior, of all that are tried, for which the evidence is largest.

    Tried are a mean of 0 and, if one is given, `SCALES` times the prior mean, each with the
    `VARIANCES`. Only choices that are no ties are evidence. A tie says that two scores are alike,
    which all of them are under a small variance: to somebody who mostly says "tie" it would always
    fit.
    """
    told = choices != 0.5
    means = [None, *(() if prior_mean is None else (scale * prior_mean for scale in SCALES))]
    variance, mean = max(
        product(VARIANCES, means),
        key=lambda prior: fit_posterior(differences[told], choices[told], *prior).log_evidence,
    )
    return fit_posterior(differences, choices, variance, mean)


def weights_of(judge: Reward, features: Features, pairs: Sequence[Pair]) -> Tensor:
    """(K,), the weights that come nearest to another judge's scores: a prior mean.

    They are fitted by least squares to the differences between its scores of the pairs' answers.
    How much a point of its scores is worth in choices is left open: see `SCALES`.
    """
    asked, answers, places = _each_answer_once(pairs)
    scores = torch.tensor(judge(asked, answers)).double()[places]
    leads = scores[: len(pairs)] - scores[len(pairs) :]
    return torch.linalg.lstsq(features.differences(pairs), leads, driver="gelsd").solution


class BayesianJudge:
    """Scores answers as somebody would who made these choices, and knows how sure it is.

    A score is 0 for the average answer that it was fitted on, and its unit is the deviation between
    answers to one prompt. It can be PPO's reward.
    """

    def __init__(self, features: Features, posterior: Posterior, policy: str, labels: int) -> None:
        """`policy`: whose answers the labels were about. `labels`: how many it learned from."""
        self.features, self.posterior = features, posterior
        self.policy, self.labels = policy, labels
        spread = (posterior.mean.square() * features.spread).sum()
        self._unit = max(float(spread / 2) ** 0.5, 1e-12)  # a difference has twice the variance

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: Sequence[Label],
        policy: str,
        prior_mean: Tensor | None = None,
    ) -> BayesianJudge:
        """The judge after these labels; skipped pairs and blind tests teach it nothing.

        Args:
            prior_mean: (K,), of another judge that it may begin with (`weights_of`), if the
                evidence says so; by default it begins with nothing.
        """
        learned = lessons(labels)
        differences = features.differences([label.pair for label in learned])
        posterior = fit_with_evidence(differences, choice_values(learned), prior_mean)
        return cls(features, posterior, policy, len(learned))

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        """Score each response to the query at the same place, in the caller's order."""
        if not len(queries) and not len(responses):
            return []
        scores = self.features(list(queries), list(responses)) @ self.posterior.mean / self._unit
        return checked_scores(scores.tolist(), len(responses))

    def save_pretrained(self, folder: str | Path) -> None:
        """Leave the judge in a folder, without the language model that it reads with."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.features.save(folder)
        tensors = {"mean": self.posterior.mean, "covariance": self.posterior.covariance}
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / POSTERIOR_FILE)
        evidence = self.posterior.log_evidence
        settings = {"policy": self.policy, "labels": self.labels, "log_evidence": evidence}
        text = json.dumps(settings, ensure_ascii=False, indent=2)
        (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, reader: Reader, policy: str) -> BayesianJudge:
        """The judge that `save_pretrained` left in a folder.

        Args:
            reader: the one that it was fitted on. policy: whose answers it is to judge.

        Raises:
            ModelError: where the folder has no judge, or one of another policy's answers.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        if not (folder / SETTINGS_FILE).exists():
            raise ModelError(f"there is no judge in {folder}: fit one with `judge` first")
        features = Features.load(folder, reader)
        with loading(folder):
            tensors = load_file(folder / POSTERIOR_FILE)
            settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
            posterior = Posterior(**tensors, log_evidence=settings["log_evidence"])
            judge = cls(features, posterior, settings["policy"], settings["labels"])
        if judge.policy != policy:
            raise ModelError(
                f"the judge in {folder} learned from answers of {judge.policy!r}, not of "
                f"{policy!r}: fit one to labels of this policy with `judge`"
            )
        return judge


def lessons(labels: Sequence[Label]) -> list[Label]:
    """The labels that a judge learns from: all but skipped pairs and blind tests."""
    return [label for label in labels if label.purpose == "train" and label.choice != "skip"]


def choice_values(labels: Sequence[Label]) -> Tensor:
    """(N,), 1 where a was chosen, 0 for b, 1/2 for a tie."""
    values = {"a": 1.0, "b": 0.0, "tie": 0.5}
    return torch.tensor([values[label.choice] for label in labels])


# How well it does ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How often a judge chooses as the labels do, where these are no ties."""

    right: int
    n: int

    @property
    def share(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, at 95%."""
        return accuracy_interval(self.right, self.n)

    @property
    def warning(self) -> str | None:
        """What to tell where this cannot be told from guessing."""
        low, high = self.interval
        if low > 0.5:
            return None
        return (
            f"{self.right} of {self.n} is not yet better than a coin ({low:.0%} to {high:.0%}): "
            "label some dozens more before you trust this judge"
        )

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.0%} of {self.n} choices (95% interval {low:.0%} to {high:.0%})"


def agreement_of(margins: Tensor, choices: Tensor) -> Agreement:
    """Of choices that are no ties, those that fall to the side of the margin; 0 is on neither side.

    Args:
        margins: (N,), scores of a less those of b. choices: (N,), as `choice_values` gives them.

    Raises:
        DataError: where all choices are ties.
    """
    told = choices != 0.5
    if not told.any():
        raise DataError("no label prefers one answer to the other: there is nothing to agree with")
    return Agreement(int((margins * (choices - 0.5) > 0).sum()), int(told.sum()))


def cross_validated_agreement(
    features: Features, labels: Sequence[Label], prior_mean: Tensor | None = None
) -> Agreement:
    """How often a judge that learned from other prompts' labels chooses as these labels do.

    Prompts are dealt into ten groups, and each is judged by what the other nine teach. A pair that
    came again counts once. Where active choice picked the pairs, the share speaks of such pairs: on
    others it may be higher or lower.

    Raises:
        DataError: where no label prefers one answer, or all are about one prompt.
    """
    learned = lessons(labels)
    prompts = {prompt: n for n, prompt in enumerate(dict.fromkeys(x.prompt for x in learned))}
    if len(prompts) < 2:
        raise DataError(f"there are labels of {len(prompts)} prompts: label two at least")
    folds = torch.tensor([prompts[label.prompt] % FOLDS for label in learned])
    differences = features.differences([label.pair for label in learned])
    choices, margins = choice_values(learned).double(), torch.zeros(len(learned)).double()
    for fold in folds.unique():
        out = folds == fold
        learned_elsewhere = fit_with_evidence(differences[~out], choices[~out], prior_mean)
        margins[out] = differences[out] @ learned_elsewhere.mean
    once = torch.tensor([not label.repeat for label in learned])
    return agreement_of(margins[once], choices[once])
