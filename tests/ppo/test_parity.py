"""The same numbers as TRL 0.11.4: its recorded runs (scripts/parity) replayed with our trainer."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from datasets import Dataset
from parity_cases import CASES, RECORDED_STEPS, unfired
from support import parity

from rlhf_tutorial import AutoModelForCausalLMWithValueHead, PPOConfig
from rlhf_tutorial.ppo.config import NOT_SUPPORTED, RENAMED, WITHOUT_EFFECT

EQUAL = [name for name, case in CASES.items() if case.equal]
TRL = json.loads((parity.RECORDED / "defaults.json").read_text(encoding="utf-8"))


# Enough to notice a mistake soon: each part of the step is in one of them.
QUICK = ("kl", "kl_full", "llama", "mini_batches", "gamma_lambda", "response_mask", "shared_layers")
QUICK += ("score_scaling_norm_clip", "adaptive_controller", "gradient_clipping", "lora")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in EQUAL]
)
def test_every_number_is_trls(name, tokenizer):
    """Statistics of ten steps; per-token tensors and weights after the first, third and tenth."""
    fixture = parity.load(name)
    recorded = {int(key.split("/")[0].removeprefix("step")) for key in fixture.tensors}
    assert recorded == set(RECORDED_STEPS) and len(fixture.stats) == 10
    assert parity.differences(fixture, tokenizer) == []


@pytest.mark.parametrize("name", CASES)
def test_the_fixture_is_of_this_case_and_its_mechanism_fired_in_trl(name):
    """If the first assertion fails because a case was changed: make parity, and do as it says."""
    fixture = parity.load(name)
    content = json.loads((parity.RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    assert content["case"] == json.loads(json.dumps(asdict(fixture.case)))
    assert unfired(fixture.case, fixture.stats, fixture.evidence) == []


def test_the_tolerances_are_tight_and_there_is_no_stray_fixture():
    assert max(v for k, v in parity.atol().items() if k != "weights") < 5e-5
    for key in ("ppo/policy/clipfrac", "ppo/mean_scores", "objective/kl_coef"):
        assert parity.atol()[key] == 0
    names = {p.stem for p in parity.RECORDED.glob("*.safetensors")}
    starts = {f"{what}_{kind}" for what in ("weights", "adapter") for kind in ("gpt2", "llama")}
    assert names == {*CASES, *starts}
    size = sum(p.stat().st_size for p in parity.RECORDED.rglob("*") if p.is_file())
    assert size < 4e6


def test_stats_have_trls_keys_and_shapes(tokenizer):
    fixture = parity.load("mini_batches")
    _, stats, tensors = next(parity.replay(fixture, tokenizer))
    per_token = {"objective/logprobs", "objective/ref_logprobs", "ppo/policy/ratio"}
    assert set(stats) == fixture.shapes.keys() | per_token | {
        "ppo/policy/advantages",
        "objective/mask",
    }
    for key, shape in fixture.shapes.items():
        assert list(np.shape(stats[key])) == shape, key
        assert isinstance(stats[key], np.ndarray if shape else float), key
    # TRL's per-token arrays span the prompt and the padding as well: equal in number of dimensions.
    for key in per_token:
        assert stats[key].ndim == (2 if key.startswith("objective") else 1)
    assert int(stats["objective/mask"].sum()) == len(tensors["logprobs"])


def test_the_defaults_are_trls():
    ours, trls = PPOConfig(), TRL["defaults"]
    supported = {f.name for f in fields(PPOConfig)}
    others = NOT_SUPPORTED.keys() | WITHOUT_EFFECT.keys() | RENAMED.keys()
    assert supported | others == trls.keys() | {
        "max_grad_norm",
        "ptx_coef",
        "temperature",
    }
    assert not supported & others
    assert ours.ptx_coef == 0 and ours.temperature == 1  # TRL has no such settings
    for name in supported - {
        "exp_name",
        "ptx_coef",
        "temperature",
    }:  # TRL's exp_name is the running script
        assert getattr(ours, name) == trls[name], name


def test_a_policy_that_trl_saved_is_loaded_with_its_value_head():
    expected = parity.policy("gpt2", "policy").state_dict()
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(parity.RECORDED / "checkpoint")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


# Intended differences ------------------------------------------------------------------------
# Each is shown from both sides: what TRL recorded, and that ours is right where TRL is not.


def test_gradient_clipping_acts_on_every_update_and_trls_on_the_first(tokenizer):
    """TRL keeps the parameters in a generator, which the first clipping uses up."""
    fixture = parity.load("trl_gradient_clipping")
    assert parity.differences(fixture, tokenizer, steps=1) == []
    found = parity.differences(fixture, tokenizer)  # the second update shows in the third step
    assert any(d.startswith("step 3, objective/kl:") for d in found)
    # With a list in the generator's place TRL agrees: the case "gradient_clipping" above.
    assert CASES["gradient_clipping"].mended == "gradient clipping"


def test_left_padded_gpt2_is_read_as_each_sample_alone_and_trls_is_not(tokenizer):
    """TRL passes no position ids, so that GPT-2 counts the padding."""
    fixture = parity.load("trl_left_padding_gpt2")
    model, given, alone = parity.policy("gpt2", "policy"), parity.inputs(fixture.case, 1), []
    for query, response in zip(given.queries, given.responses, strict=True):
        with torch.no_grad():
            logits = model.pretrained_model(torch.cat([query, response])[None]).logits[0]
        before = logits[len(query) - 1 : -1].log_softmax(-1)
        alone += [p[token] for p, token in zip(before, response, strict=True)]
    alone = torch.stack(alone)
    _, _, ours = next(parity.replay(fixture, tokenizer))
    torch.testing.assert_close(ours["logprobs"], alone, rtol=0, atol=1e-5)
    assert (fixture.tensors["step1/logprobs"] - alone).abs().max() > 0.1


def test_accumulation_goes_on_in_a_dataloaders_loop_and_trls_stops(tokenizer):
    """accelerate updates at every mini-batch of a loader's last batch, unless told not to."""
    inside, outside = parity.load("trl_accumulation_in_dataloader"), parity.load("accumulation")
    weights = {k: v for k, v in outside.tensors.items() if k.startswith("step1/weights/")}
    assert max((v - inside.tensors[k]).abs().max() for k, v in weights.items()) > 1e-3
    one_batch = Dataset.from_dict({"input_ids": [[3]] * 8})
    trainer = parity.make_trainer(outside.case, tokenizer, one_batch)
    orders = iter(torch.tensor(p) for p in outside.permutations[0])
    trainer.permutation = lambda n: next(orders)
    given = parity.inputs(outside.case, 1)
    for _ in trainer.dataloader:
        trainer.step(given.queries, given.responses, given.scores)
    for name, parameter in trainer.model.named_parameters():
        expected = weights[f"step1/weights/{name.replace('v_head.', 'v_head.summary.')}"]
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-6, msg=name)


def test_whitened_rewards_do_not_leak_from_the_padding_and_trls_do(tokenizer):
    """Shown by computing each response's advantages alone, from the rewards whitened together."""
    fixture = parity.load("trl_whiten_rewards_padded")
    _, _, ours = next(parity.replay(fixture, tokenizer))
    lengths = [len(r) for r in parity.inputs(fixture.case, 1).responses]
    rewards, values = (ours[k].double().numpy() for k in ("rewards", "values"))
    scale = 1 / np.sqrt(rewards.var(ddof=1) + 1e-8)
    rewards = (rewards - rewards.mean()) * scale + rewards.mean()
    returns, start = [], 0
    for n in lengths:
        r, v = rewards[start : start + n], [*values[start : start + n], 0.0]
        delta = [r[t] + v[t + 1] - v[t] for t in range(n)]
        returns += [v[t] + sum(0.95 ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]
        start += n
    np.testing.assert_allclose(ours["returns"], returns, rtol=0, atol=1e-5)
    trls = fixture.tensors["step1/returns"].numpy()
    off = np.abs(trls - returns)
    assert off.max() > 0.1
    ends = np.cumsum(lengths) - 1
    longest = ends[
        np.argmax(np.array(lengths) + [len(q) for q in parity.inputs(fixture.case, 1).queries])
    ]
    assert off[longest] < 1e-5, "the longest row has no padding after it"


def test_score_scaling_works_and_trls_raises(tokenizer):
    assert TRL["score_scaling_error"] == "'float' object has no attribute 'to'"
    fixture = parity.load("score_scaling")  # TRL with its moments made tensors
    assert fixture.case.mended == "score scaling"
    _, stats, _ = next(parity.replay(fixture, tokenizer))
    raw = torch.stack(parity.inputs(fixture.case, 1).scores)
    assert stats["ppo/mean_scores"] == pytest.approx((raw / raw.std()).mean().item(), rel=1e-5)


def test_a_query_that_contains_eos_is_returned_whole_and_trls_is_cut(tokenizer):
    recorded = TRL["generate_with_eos_in_the_query"]
    query = recorded["query"]
    assert recorded["returned"] == query[:2] and query[1] == 1  # 1 is EOS
    trainer = parity.make_trainer(CASES["kl"], tokenizer)
    (returned,) = trainer.generate([torch.tensor(query)], max_new_tokens=3)
    assert returned[: len(query)].tolist() == query and len(returned) > len(query)
