"""Numbers in the prose of notebooks 03b and 08b, against the outputs beside it."""

from __future__ import annotations

import re

import torch
from support.notebooks import outputs_and_prose, row

from rlhf_tutorial.by_hand import sampled_gradient


def test_the_policy_gradient() -> None:
    shown, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    for name, digits in (("answer-sign", "-0.045"), ("gradient-check", "+0.2820")):
        assert digits in shown[name]
    runs = re.findall(r"(\d+) of 10", shown["train"])
    assert runs == ["8", "10"]
    assert "two of the ten runs" in prose and "all ten runs find" in prose
    noise, signal = row(shown["baseline-table"], "b = 10.00")[-1], 0.282
    assert noise / signal > 20 and "over twenty times the signal" in prose
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


def test_how_many_batches_push_the_best_answer_down() -> None:
    logits = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    scores = torch.tensor([2.5, 1.0, 0.3], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(logits.softmax(-1), 400 * 16, replacement=True, generator=random)
    pushes = sampled_gradient(logits, drawn, scores[drawn] + 3).view(400, 16, 3).mean(1)[:, 0]
    assert 1 / 3 < (pushes < 0).double().mean() < 0.4
    _, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    assert "more than a third of them push the concrete answer down" in prose


def test_the_rivals() -> None:
    shown, prose = outputs_and_prose("08b_rivals_by_hand.ipynb")
    race, limit = shown["race-table"], shown["limit-table"]
    assert all(0.005 < row(race, name)[0] < 0.015 for name in ("PPO", "REINFORCE", "RLOO"))
    assert round(row(race, "DPO")[0], 2) == 0.23 and "It is at 0.23 nats" in prose
    assert row(race, "DPO")[3] == max(row(race, n)[3] for n in ("PPO", "RLOO", "GRPO", "DPO"))
    assert f"{row(race, 'GRPO')[0]:.2f}" == "0.20" and "ends at 0.20" in prose
    assert [round(row(race, n)[4], 2) for n in ("GRPO", "π*")] == [0.36, 0.21]
    assert "36% of its answers, where $\\pi^*$ does in 21%" in prose
    nearer, further, optimum = (row(limit, name)[1] for name in ("GRPO, not divided", "GRPO", "π*"))
    assert [f"{x:.2f}" for x in (nearer, further, optimum)] == ["0.99", "1.39", "1.12"]
    assert "(0.99 nats against 1.12)" in prose and "(1.39)" in prose
    assert row(limit, "RLOO")[0] < 0.001 and row(limit, "DPO")[0] < 0.001
    gradients = shown["kl-gradients-table"]
    assert row(gradients, "k1")[0] == row(gradients, "k2")[1] == row(gradients, "k3")[2] == 0
