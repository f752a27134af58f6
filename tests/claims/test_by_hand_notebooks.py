"""Numbers in the prose of notebooks 03b and 08b, against the outputs beside it."""

from __future__ import annotations

import math
import re

import pytest
import torch
from support.notebooks import outputs_and_prose, row

from rlhf_tutorial.by_hand import SmallPolicy, k3, sampled_gradient


def test_the_policy_gradient() -> None:
    shown, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    for name, digits in (("answer-sign", "-0.045"), ("gradient-check", "+0.2820")):
        assert digits in shown[name]
    runs = re.findall(r"(\d+) of 10", shown["train"])
    assert runs[:2] == ["8", "10"], "without a baseline, and with one"
    assert "two of the ten runs" in prose and "all ten runs find" in prose
    by_formula = re.findall(r"'([-+][\d.]+)'", shown["gradient-check"].splitlines()[0])
    signal = math.hypot(*map(float, by_formula))
    noise = row(shown["baseline-table"], "b = 10.00")[-1]
    assert f"{signal:.2f}" == "0.37" and 18.5 < noise / signal < 20
    assert "nearly twenty times the signal (0.37, the gradient's length)" in prose
    assert 0.2 < row(shown["drift-table"], "k1")[3] < 0.3
    assert "a quarter of the batches" in prose
    assert row(shown["drift-table"], "k3")[2] < row(shown["drift-table"], "k1")[2] / 3
    assert "$k_2$ and $k_3$ are far less noisy" in prose
    drawn, old, free, clipped = row(
        shown["clip-table"], "Cut it into small pieces and wait ten minutes."
    )
    assert (drawn, old) == (2, 0.2) and free > 0.9 and 0.3 < clipped < 0.36
    assert "seen it twice" in prose and "from one in five to one in three" in prose
    assert f"from {old:.2f} to {free:.2f}" == "from 0.20 to 0.94" and "from 0.20 to 0.94" in prose
    assert f"{1.2 * old:.2f}" == "0.24" and "leaves the band at a probability of 0.24" in prose
    _, old, _, vague = row(shown["clip-table"], "There are many ways to soften butter.")
    assert 0.8 < vague / old < 1 and "still inside its band" in shown["clip"]
    values, score = [1.0, 1.2, 1.1, 2.2, 0.0], 2.5
    assert f"${values[4]:.0f} + {values[1]} - {values[0]} = 0.2$" in prose
    credit, chain = 0.0, []
    for t in reversed(range(4)):
        credit = (score if t == 3 else 0) + values[t + 1] - values[t] + 0.95 * credit
        chain.append(f"{credit:.3f}")
    assert all(number in prose for number in ("0.30;", *chain[1:]))


def test_the_bargain_of_a_head_that_is_half_right() -> None:
    shown, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    cells = re.findall(r"  (-?\d\.\d{3})(?=  )", shown["bias"].split("perfect")[-1])
    found = [float(cell) for cell in cells]  # rows of three numbers: three for each head
    assert len(found) == 27
    perfect, half, constant = (
        [found[i : i + 3] for i in range(start, start + 9, 3)] for start in (0, 9, 18)
    )
    assert all(mean == perfect[2][1] for _, mean, _ in perfect) and perfect[0][2] == 0
    kept, noise = (half[1][column] / half[2][column] for column in (1, 2))
    assert f"keeps {kept:.0%} of the truth and {noise:.0%} of the noise" in prose
    for column in (1, 2):
        assert abs(constant[1][column] / constant[2][column] - 0.95**3) < 0.002
    assert f"{0.95**3:.2f}" == "0.86"
    assert "shrink to 0.86 of what they were at 1 ($0.95^3$)" in prose
    assert abs(0.95**31 - 1 / 5) < 0.005 and "first of 32 tokens keeps a fifth" in prose


def test_how_many_batches_push_the_best_answer_down() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    scores = torch.tensor([2.5, 1.0, 0.3], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(logits.softmax(-1), 400 * 16, replacement=True, generator=random)
    pushes = sampled_gradient(logits, drawn, scores[drawn] + 3).view(400, 16, 3).mean(1)[:, 0]
    assert 1 / 3 < (pushes < 0).double().mean() < 0.4
    _, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    assert "more than a third of them push the concrete answer down" in prose


def test_the_race() -> None:
    shown, prose = outputs_and_prose("08b_rivals_by_hand.ipynb")
    race = {name: row(shown["race-table"], name) for name in ("PPO", "REINFORCE", "RLOO")}
    near, nearer = race["REINFORCE"], race["RLOO"]
    assert f"at {nearer[0]:.3f} nats where REINFORCE has {near[0]:.3f}; the seeds" in prose
    assert near[1] == nearer[1] == 0.002 and "the seeds scatter by 0.002 (SD)" in prose
    assert (near[0] - nearer[0]) / (near[1] ** 2 + nearer[1] ** 2) ** 0.5 * 10**0.5 > 3
    ppo = race["PPO"]
    assert f"PPO's {ppo[0]:.3f}, which scatters by {ppo[1]:.3f}" in prose
    slow, misled, best = (row(shown["race-table"], name) for name in ("DPO", "GRPO", "π*"))
    assert f"DPO at {slow[0]:.2f} nats, GRPO at {misled[0]:.2f}" in prose
    assert slow[4] > max(misled[4], best[3], *(found[4] for found in race.values()))
    controls = shown["race-controls"]
    once, rloo, quick, whole = (
        row(controls, name)
        for name in ("PPO, one update a batch", "RLOO", "RLOO, four times the rate", "PPO")
    )
    assert f"({once[0]:.2f} and {rloo[0]:.2f} nats)" in prose
    assert f"({quick[0]:.2f}, where PPO has {whole[0]:.2f})" in prose
    assert once[-1] < min(rloo[-1], quick[-1], whole[-1])
    unclipped, plain = (row(controls, f"PPO, {how}") for how in ("no clip", "not whitened"))
    assert unclipped == pytest.approx(whole, abs=0.005), "the clip has no part in it"
    told = "at {:.3f} nats, without whitening at {:.3f}, and with one update at {:.3f}, so both"
    assert told.format(whole[2], plain[2], once[2]) in prose
    told = "only the updates matter: {:.3f}, {:.3f} and {:.3f}, the nearest of all"
    assert told.format(whole[-1], plain[-1], once[-1]) in prose


def test_the_rivals_without_noise() -> None:
    shown, prose = outputs_and_prose("08b_rivals_by_hand.ipynb")
    limit = shown["limit-table"]
    assert row(limit, "RLOO")[0] < 0.001 and row(limit, "DPO")[0] < 0.001
    further, nearer, optimum = (row(limit, name) for name in ("GRPO", "GRPO, not divided", "π*"))
    assert f"({further[1]:.2f} nats) than $\\pi^*$ does ({optimum[1]:.2f})" in prose
    assert f"still ends {nearer[0]:.2f} nats away" in prose and f"({nearer[1]:.2f})" in prose
    few, start = row(limit, "DPO, the same 200 pairs"), row(shown["race-table"], "reference")
    assert f"it ends {few[0]:.1f} ± {few[1] / 10**0.5:.1f} nats from $\\pi^*$" in prose
    happiest = max(row(limit, name)[-2] for name in ("RLOO", "GRPO", "DPO", "π*"))
    assert f"than anybody's, {few[-2]:.2f}:" in prose and few[-2] > happiest
    assert f"nearly as far as the reference is ({start[0]:.1f})" in prose


def test_where_each_estimate_of_the_kl_is_right() -> None:
    shown, prose = outputs_and_prose("08b_rivals_by_hand.ipynb")
    gradients = {
        (k, of): row(shown["kl-gradients-table"], f"{k}, {of}")
        for k in ("k1", "k2", "k3")
        for of in ("whole answers", "tokens")
    }
    assert [gradients[k, "whole answers"].index(0) for k in ("k1", "k2", "k3")] == [0, 1, 2]
    _, ours, other = gradients["k3", "tokens"]
    assert f"{ours:.2f}" == f"{other:.2f}" == "0.06" and "0.06 from both" in prose
    assert f"exact any more ({gradients['k2', 'tokens'][1]:.2f})" in prose
    ends = {k: row(shown["where-the-kl"], k) for k in ("k1", "k2", "k3")}
    right = [ends["k1"][0], ends["k1"][1], ends["k2"][2]]
    assert max(right) < 0.001 < ends["k2"][3] < 0.01 < 0.1 < min(ends["k2"][:2])
    assert min(ends["k3"][:2]) == pytest.approx(0.6, abs=0.005)
    assert "it ends 0.60 nats away or more" in prose
    assert f"the other KL and ends {ends['k3'][2]:.2f} away" in prose
    assert f"as in GRPO, it ends {ends['k3'][3]:.2f} away" in prose
    favourite = row(shown["limit-table"], "π*")[-1]
    assert min(ends["k1"][2:]) == pytest.approx(-math.log(favourite), abs=0.1)


def test_a_prefix_that_is_given_is_what_k3_of_tokens_leaves_out() -> None:
    """Its mean gradient is that of the next token's KL at each prefix, held fixed."""
    generator = torch.Generator().manual_seed(0)
    logits, of_reference = torch.randn(2, 13, 3, generator=generator, dtype=torch.float64)
    policy, reference = SmallPolicy(logits, length=3), SmallPolicy(of_reference, length=3)
    weights = policy.log_probabilities().exp().detach()
    tokens = policy(policy.answers)
    ref_tokens = reference(policy.answers).detach()
    (given,) = torch.autograd.grad(weights @ k3(tokens, ref_tokens).sum(1), policy.logits)
    passed = torch.zeros(13, dtype=torch.float64)
    rows = policy.prefixes(policy.answers)
    passed.index_add_(0, rows.flatten(), weights[:, None].expand(-1, 3).flatten())
    log_pi, log_ref = policy.logits.log_softmax(-1), of_reference.log_softmax(-1)
    at_each = (log_ref.exp() * (log_ref - log_pi)).sum(-1)
    (wanted,) = torch.autograd.grad(passed @ at_each, policy.logits)
    torch.testing.assert_close(given, wanted)
