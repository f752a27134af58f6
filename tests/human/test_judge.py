"""The reader's own judge: its posterior, its scores, its honesty about few labels, its folder."""

import json

import numpy as np
import pytest
import torch
from support.chosen import label, labelled, pairs_of, prefers_short, read

from rlhf_tutorial.errors import DataError, ModelError
from rlhf_tutorial.human.judge import (
    Agreement,
    BayesianJudge,
    Features,
    agreement_of,
    choice_values,
    cross_validated_agreement,
    fit_posterior,
    fit_with_evidence,
    weights_of,
)
from rlhf_tutorial.human.labels import Pair


def sigma(x):
    return 1 / (1 + np.exp(-x))


def choices_of(differences, weights, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(
        rng.random(len(differences)) < sigma(differences.numpy() @ weights)
    ).double()


def some_differences(n, k, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, k)))


# The posterior ---------------------------------------------------------------------------------


def loss_at(weights, differences, choices, variance):
    """Written out: a tie is half of a choice to each side, counted one by one."""
    total = np.square(weights).sum() / (2 * variance)
    for d, y in zip(differences.numpy(), choices.numpy(), strict=True):
        for share, side in ((y, 1), (1 - y, -1)):
            total -= share * np.log(sigma(side * d @ weights))
    return total


def test_the_posterior_sits_at_the_bottom_and_is_as_wide_as_the_loss_is_curved():
    """By finite differences of the loss: the gradient is 0, the covariance inverts the second."""
    differences = some_differences(40, 3)
    choices = choices_of(differences, np.array([1.0, -0.5, 2.0]))
    choices[::7] = 0.5
    posterior = fit_posterior(differences, choices, variance=0.7)
    step, axes = 1e-4, np.eye(3)

    def loss(offset):
        return loss_at(posterior.mean.numpy() + step * offset, differences, choices, 0.7)

    gradient = [(loss(e) - loss(-e)) / (2 * step) for e in axes]
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    second = [
        [(loss(e + f) - loss(e - f) - loss(f - e) + loss(-e - f)) / (4 * step**2) for f in axes]
        for e in axes
    ]
    np.testing.assert_allclose(posterior.covariance, np.linalg.inv(second), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("k", "prior_mean"), [(1, None), (2, None), (2, [0.2, -0.6])])
def test_mean_deviation_and_evidence_are_those_of_the_integral(k, prior_mean):
    """With a few dozen choices the posterior is nearly a Gaussian; the grid knows no such thing."""
    differences = some_differences(60, k, seed=3)
    choices = choices_of(differences, np.array([0.8, -0.4])[:k], seed=4)
    variance = 0.5
    start = prior_mean or [0.0] * k
    given = None if prior_mean is None else torch.tensor(prior_mean)
    posterior = fit_posterior(differences, choices, variance, given)
    axis = np.linspace(-4, 4, 401)
    grid = np.stack(np.meshgrid(*[axis] * k, indexing="ij"), axis=-1).reshape(-1, k)
    margins = grid @ differences.numpy().T
    y = choices.numpy()
    log_joint = (y * np.log(sigma(margins)) + (1 - y) * np.log(sigma(-margins))).sum(axis=1)
    log_joint -= ((grid - start) ** 2).sum(axis=1) / (2 * variance) + k / 2 * np.log(
        2 * np.pi * variance
    )
    density = np.exp(log_joint - log_joint.max())
    weight = density / density.sum()
    mean = weight @ grid
    deviation = np.sqrt(weight @ (grid - mean) ** 2)
    evidence = np.log(density.sum() * (axis[1] - axis[0]) ** k) + log_joint.max()
    np.testing.assert_allclose(posterior.mean, mean, atol=0.05)
    np.testing.assert_allclose(posterior.covariance.diagonal().sqrt(), deviation, rtol=0.05)
    assert posterior.log_evidence == pytest.approx(evidence, abs=0.05)


def test_without_choices_the_posterior_is_the_prior():
    posterior = fit_posterior(torch.zeros(0, 3), torch.zeros(0), variance=0.3)
    torch.testing.assert_close(posterior.covariance, 0.3 * torch.eye(3).double())
    assert not posterior.mean.any()
    assert posterior.log_evidence == pytest.approx(0, abs=1e-9)


def test_newton_arrives_where_steps_are_too_long():
    """Separable choices of huge differences under a wide prior: full steps overshoot."""
    differences = 1000 * some_differences(30, 4)
    choices = (differences[:, 0] > 0).double()
    posterior = fit_posterior(differences, choices, variance=1e4)
    p = torch.sigmoid(differences @ posterior.mean)
    gradient = posterior.mean / 1e4 - differences.T @ (choices - p)
    assert gradient.abs().max() < 1e-3


def test_the_evidence_tells_a_strong_taste_from_none():
    differences = some_differences(400, 3)
    strong = choices_of(differences, np.array([4.0, -3.0, 2.0]))
    none = choices_of(differences, np.zeros(3))
    size = [fit_with_evidence(differences, y).mean.norm() for y in (strong, none)]
    assert size[0] > 3
    assert size[1] < 0.4


def test_ties_do_not_talk_the_evidence_out_of_a_taste():
    """Nine of ten are ties, which differ in all but what counts: they leave the taste as it is."""
    told, tied = some_differences(40, 20, seed=1), some_differences(360, 20, seed=2)
    tied[:, 0] = 0
    choices = torch.cat([(told[:, 0] > 0).double(), torch.full((360,), 0.5)])
    choices[:2] = 1 - choices[:2]
    both = fit_with_evidence(torch.cat([told, tied]), choices).mean
    alone = fit_with_evidence(told, choices[:40]).mean
    assert both[0] > 0.8 * alone[0] > 1
    assert both[1:].abs().max() < alone[1:].abs().max()  # and tell what does not count


def test_another_judge_is_where_it_begins_if_the_evidence_says_so():
    differences, truth = some_differences(200, 20), np.random.default_rng(5).normal(size=20)
    few, kin = choices_of(differences, truth)[:25], torch.from_numpy(truth) / 2
    alone = fit_with_evidence(differences[:25], few)
    helped = fit_with_evidence(differences[:25], few, kin)
    misled = fit_with_evidence(differences[:25], few, -kin)

    def right(posterior):
        return float(
            ((differences @ posterior.mean > 0) == (differences @ kin > 0)).double().mean()
        )

    assert right(helped) > right(alone) + 0.05 and helped.log_evidence > alone.log_evidence
    torch.testing.assert_close(misled.mean, alone.mean)


def test_another_judges_weights_are_found_in_its_scores():
    pairs = pairs_of(40)
    features, weights = Features.fit(read, pairs), torch.tensor([1.5, -0.5]).double()
    found = weights_of(lambda q, r: (features(q, r) @ weights + 3).tolist(), features, pairs)
    torch.testing.assert_close(found, weights)


# Features --------------------------------------------------------------------------------------


def test_features_are_the_components_of_differences():
    pairs = pairs_of(40)
    features = Features.fit(read, pairs)
    differences = features.differences(pairs)
    assert differences.shape == (40, 2)  # the prompt's two numbers differ in no pair
    second = differences.T @ differences / 40
    torch.testing.assert_close(second, torch.diag(features.spread), atol=1e-5, rtol=0)
    assert features.spread[0] == pytest.approx(1)
    everything = features(
        [p.prompt for p in pairs] * 2, [p.a for p in pairs] + [p.b for p in pairs]
    )
    assert everything.mean(dim=0).abs().max() < 1e-4


def test_an_answer_is_read_once():
    seen = []

    def reader(queries, responses):
        seen.extend(zip(queries, responses, strict=True))
        return read(queries, responses)

    pairs = pairs_of(10)
    pairs += [Pair(p.prompt, p.b, "a third answer, in many pairs") for p in pairs]
    features = Features.fit(reader, pairs)
    assert len(seen) == 30
    features.differences(pairs)
    features(["new", "new"], ["same", "same"])
    assert len(seen) == 31


def test_pairs_that_say_nothing_are_refused():
    with pytest.raises(DataError, match="some dozens"):
        Features.fit(read, [])
    with pytest.raises(DataError, match="some dozens"):
        Features.fit(read, [Pair("p", "same", "same")])


# The judge -------------------------------------------------------------------------------------


def test_a_judge_scores_as_the_labels_choose():
    judge = BayesianJudge.fit(Features.fit(read, pairs_of(60)), labelled(60), "p")
    fresh = pairs_of(30, seed=9)
    a = judge([p.prompt for p in fresh], [p.a for p in fresh])
    b = judge([p.prompt for p in fresh], [p.b for p in fresh])
    told = [(prefers_short(p), x > y) for p, x, y in zip(fresh, a, b, strict=True)]
    assert np.mean([(c == "a") == better for c, better in told if c != "tie"]) > 0.9
    assert judge([], []) == []


def test_the_unit_of_a_score_is_the_deviation_within_a_prompt():
    pairs = pairs_of(200)
    judge = BayesianJudge.fit(Features.fit(read, pairs), labelled(60), "p")
    a = np.array(judge([p.prompt for p in pairs], [p.a for p in pairs]))
    b = np.array(judge([p.prompt for p in pairs], [p.b for p in pairs]))
    assert np.mean((a - b) ** 2 / 2) == pytest.approx(1, rel=1e-4)


def test_skipped_pairs_and_blind_tests_teach_nothing():
    features, good = Features.fit(read, pairs_of(60)), labelled(30)
    other = [label(p, "a", purpose="blind test") for p in pairs_of(60)[30:45]]
    other += [label(p, "skip") for p in pairs_of(60)[45:]]
    one, two = (BayesianJudge.fit(features, each, "p") for each in (good, good + other))
    torch.testing.assert_close(one.posterior.mean, two.posterior.mean)
    assert two.labels == 30


def test_a_judge_without_labels_scores_all_alike():
    judge = BayesianJudge.fit(Features.fit(read, pairs_of(10)), [], "p")
    assert judge(["a", "b"], ["some", "answer"]) == [0.0, 0.0]


def test_a_judge_comes_back_from_its_folder(tmp_path):
    features = Features.fit(read, pairs_of(40))
    judge = BayesianJudge.fit(features, labelled(40), "smollm2, untouched")
    judge.save_pretrained(tmp_path)

    def unneeded(queries, responses):
        raise AssertionError("these answers were read before")

    again = BayesianJudge.from_pretrained(tmp_path, unneeded, "smollm2, untouched")
    asked = [p.prompt for p in pairs_of(40)], [p.a for p in pairs_of(40)]
    assert again(*asked) == pytest.approx(judge(*asked))
    assert json.loads((tmp_path / "judge.json").read_text())["labels"] == 40


def test_a_judge_of_another_policy_is_refused(tmp_path):
    BayesianJudge.fit(Features.fit(read, pairs_of(9)), labelled(9), "p").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="learned from answers of 'p', not of 'q'"):
        BayesianJudge.from_pretrained(tmp_path, read, "q")
    with pytest.raises(ModelError, match="no judge in"):
        BayesianJudge.from_pretrained(tmp_path / "elsewhere", read, "p")


# Agreement -------------------------------------------------------------------------------------


def test_cross_validation_finds_a_taste_and_none():
    features = Features.fit(read, pairs_of(100))
    found = cross_validated_agreement(features, labelled(100))
    assert found.share > 0.9
    assert found.warning is None
    draw = np.random.default_rng(0)
    coins = [label(p, str(draw.choice(["a", "b"]))) for p in pairs_of(100)]
    guessed = cross_validated_agreement(features, coins)
    assert 0.3 < guessed.share < 0.7
    assert "not yet better than a coin" in guessed.warning


def test_cross_validation_keeps_a_prompts_labels_together():
    """Who learned from a prompt's own labels would get the others of it right."""
    pairs = [Pair(f"prompt {i // 4}", "x" * (1 + i), "x" * (50 + i)) for i in range(40)]
    labels = [label(pair, "a" if (i // 4) % 2 else "b") for i, pair in enumerate(pairs)]
    found = cross_validated_agreement(Features.fit(read, pairs), labels)
    assert found.share < 0.5


def test_a_repeat_and_a_tie_are_not_counted():
    labels = labelled(40)
    told = sum(each.choice != "tie" for each in labels)
    again = [label(each.pair, each.choice, repeat=True) for each in labels[:10]]
    features = Features.fit(read, pairs_of(40))
    assert cross_validated_agreement(features, labels + again).n == told


def test_nothing_to_agree_with_is_said():
    features = Features.fit(read, pairs_of(10))
    with pytest.raises(DataError, match="no label prefers"):
        cross_validated_agreement(features, [label(p, "tie") for p in pairs_of(10)])
    with pytest.raises(DataError, match="labels of 1 prompts"):
        cross_validated_agreement(features, [label(pairs_of(1)[0], "a")])


def test_a_judge_without_an_opinion_agrees_with_nobody():
    margins = torch.tensor([0.0, 0.0, 0.3, -0.3, -2.0, 0.7])
    found = agreement_of(margins, torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0, 0.5]))
    assert (found.right, found.n) == (2, 5)


def test_the_interval_is_wilsons():
    assert Agreement(8, 10).interval == pytest.approx((0.490, 0.943), abs=1e-3)
    assert Agreement(8, 10).warning is not None
    assert Agreement(80, 100).warning is None
    assert str(Agreement(80, 100)) == "80% of 100 choices (95% interval 71% to 87%)"


def test_choices_as_numbers():
    pair = Pair("p", "x", "y")
    values = choice_values([label(pair, choice) for choice in ("a", "b", "tie")])
    assert values.tolist() == [1.0, 0.0, 0.5]
