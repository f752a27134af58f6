"""Which pair is asked about next: information against Monte Carlo, and what it is good for."""

from dataclasses import replace

import numpy as np
import torch
from support.chosen import label, pairs_of, read

from rlhf_tutorial import Run, load_preset
from rlhf_tutorial.human.choice import (
    active_choice,
    active_session,
    expected_information,
    expected_information_about,
    random_choice,
)
from rlhf_tutorial.human.judge import BayesianJudge, Features, Posterior, state_reader
from rlhf_tutorial.human.labels import Pair, untouched_pairs


def some_posterior(k=3, seed=0):
    rng = np.random.default_rng(seed)
    root = torch.from_numpy(rng.normal(size=(k, k)))
    return Posterior(torch.from_numpy(rng.normal(size=k)), root @ root.T / k, 0.0)


def entropy(p):
    return -p * np.log(p) - (1 - p) * np.log(1 - p)


def test_bald_is_what_monte_carlo_finds():
    posterior, rng = some_posterior(), np.random.default_rng(1)
    differences = torch.from_numpy(rng.normal(size=(5, 3)))
    weights = rng.multivariate_normal(posterior.mean, posterior.covariance, size=400_000)
    p = 1 / (1 + np.exp(-weights @ differences.numpy().T))
    drawn = entropy(p.mean(axis=0)) - entropy(p).mean(axis=0)
    np.testing.assert_allclose(expected_information(posterior, differences), drawn, atol=1e-3)


def test_bald_is_nothing_where_nothing_is_open():
    posterior = some_posterior()
    alike, sure = torch.zeros(1, 3).double(), 1e3 * posterior.mean[None]
    told = expected_information(posterior, torch.cat([alike, sure]))
    assert told[0] < 1e-9
    known = Posterior(posterior.mean, 1e-9 * posterior.covariance, 0.0)
    assert expected_information(known, torch.ones(1, 3).double()) < 1e-8


def test_information_about_others_is_that_of_a_joint_gaussian():
    """The answer is a noisy look at a margin: information is a ratio of determinants."""
    posterior, rng = some_posterior(), np.random.default_rng(2)
    d, targets = (torch.from_numpy(rng.normal(size=(n, 3))) for n in (4, 6))
    found = expected_information_about(posterior, d, targets)
    mean, covariance = posterior.mean.numpy(), posterior.covariance.numpy()
    for i in range(4):
        x = d[i].numpy()
        v = x @ covariance @ x
        p = 1 / (1 + np.exp(-(x @ mean) / np.sqrt(1 + np.pi * v / 8)))
        each = []
        for t in targets.numpy():
            joint = np.array([[v + 1 / (p * (1 - p)), x @ covariance @ t],
                              [x @ covariance @ t, t @ covariance @ t]])  # fmt: skip
            each.append(0.5 * np.log(joint[0, 0] * joint[1, 1] / np.linalg.det(joint)))
        np.testing.assert_allclose(found[i], np.mean(each), rtol=1e-9)


def test_an_odd_pair_tells_of_the_weights_but_not_of_others():
    posterior = Posterior(torch.zeros(2).double(), torch.eye(2).double(), 0.0)
    usual, odd = torch.tensor([2.0, 0.0]).double(), torch.tensor([0.0, 9.0]).double()
    pairs, targets = torch.stack([usual, odd]), torch.stack([usual] * 20)
    assert expected_information(posterior, pairs).argmax() == 1
    assert expected_information_about(posterior, pairs, targets).argmax() == 0


def test_no_pair_is_asked_about_twice_until_all_were():
    pairs = pairs_of(12)
    features = Features.fit(read, pairs)
    for choose in (random_choice(3), active_choice(features), active_choice(features, "pairs", 3)):
        labels = []
        for _ in pairs:
            labels.append(label(pairs[choose(labels, pairs)], "a"))
        assert {each.pair for each in labels} == set(pairs)
        assert 0 <= choose(labels, pairs) < 12


def test_a_pair_is_known_whichever_answer_is_called_a():
    pairs = pairs_of(2)
    swapped = Pair(pairs[0].prompt, pairs[0].b, pairs[0].a)
    for choose in (random_choice(), active_choice(Features.fit(read, pairs))):
        assert choose([label(swapped, "a")], pairs) == 1


def test_active_choice_learns_faster_than_chance():
    """Each pair differs in one of twelve ways, and some ways are rare: chance seldom meets them."""
    rng = np.random.default_rng(0)
    often = 1 / np.arange(1, 13) ** 1.5
    ways = rng.choice(12, size=300, p=often / often.sum())
    ways[:12] = range(12)
    taste = rng.choice([-1, 1], size=12)
    pairs = [Pair(f"prompt {i}", f"{way} 1", f"{way} 0") for i, way in enumerate(ways)]

    def reader(queries, responses):
        rows = torch.zeros(len(responses), 12)
        for row, response in zip(rows, responses, strict=True):
            way, has = map(int, response.split())
            row[way] = has
        return rows

    features = Features.fit(reader, pairs)

    def known(choose):
        labels = []
        for _ in range(24):
            i = choose(labels, pairs)
            labels.append(label(pairs[i], "a" if taste[ways[i]] > 0 else "b"))
        weights = BayesianJudge.fit(features, labels, "p").posterior.mean
        return np.mean((features.differences(pairs[:12]) @ weights).numpy() * taste > 1e-6)

    chance = np.mean([known(random_choice(seed)) for seed in range(3)])
    assert known(active_choice(features)) > chance + 0.15
    assert known(active_choice(features, "pairs")) > chance + 0.15


def test_a_session_asks_what_its_judge_would_like_to_know(tmp_path, monkeypatch):
    """Each pair is the one of the most information, by a judge that is fitted outside."""
    bars = []

    def bar(rows, **told):
        bars.append(told["desc"])
        return rows

    run = Run(replace(load_preset("tiny"), prompts=16), tmp_path)
    session = active_session(run, 4, progress=bar)
    assert bars == ["The policy answers", "The judge reads"] and session.total == 4
    pool = untouched_pairs(run, 8)
    features = Features.fit(state_reader(run), pool)
    for done in range(4):
        judge = BayesianJudge.fit(features, session.labels, "")
        told = expected_information(judge.posterior, features.differences(pool))
        known = {label.pair for label in session.labels}
        best = max((p for p in pool if p not in known), key=lambda p: told[pool.index(p)])
        assert session.current.pair == best
        session.choose("left" if done % 2 else "tie")
    assert session.current is None

    # Started again, it goes on where it was, and neither samples nor reads anew.
    monkeypatch.setattr("rlhf_tutorial.reward.states.StateReader.__call__", None)
    monkeypatch.setattr(Run, "answers", None)
    again = active_session(run, 4, progress=bar)
    assert again.current is None and again.labels == session.labels and len(bars) == 2
    again.back()
    assert again.current.pair == session.labels[-1].pair
