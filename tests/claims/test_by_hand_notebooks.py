"""Numbers in the prose of notebooks 03b and 08b, against the outputs beside it."""

from __future__ import annotations

from support.notebooks import outputs_and_prose, row


def test_the_policy_gradient() -> None:
    shown, prose = outputs_and_prose("03b_policy_gradient.ipynb")
    assert row(shown["train"], "without")[-1] == 8 and "two of the ten runs" in prose
    assert row(shown["train"], "with a baseline")[-1] == 10 and "all ten runs find" in prose
    noise, signal = row(shown["baseline-table"], "b = 10.00")[-1], 0.282
    assert noise / signal > 20 and "over twenty times the signal" in prose
    assert 0.2 < row(shown["drift-table"], "k1")[3] < 0.3
    assert "a quarter of the batches" in prose
    drawn, old, free, clipped = row(
        shown["clip-table"], "Cut it into small pieces and wait ten minutes."
    )
    assert (drawn, old) == (2, 0.2) and free > 0.9 and 0.3 < clipped < 0.36
    assert "seen it twice" in prose and "from one in five to one in three" in prose


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
