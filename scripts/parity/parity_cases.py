"""What TRL's PPOTrainer and ours are both put through: tiny policies, fixed inputs, settings.

Read by `record.py`, which runs in TRL 0.11.4's environment, and by the tests, which run in ours; so
it imports neither library. Everything drawn here is drawn by torch, of one version in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BATCH_SIZE = 8
VOCABULARY = 41
PAD, EOS, BOS = 0, 1, 2
RECORDED_STEPS = (1, 3, 10)
"""After these steps the weights are kept, and of these steps the tensors in between."""

_SPECIAL = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
MODEL_CONFIGS: dict[str, dict[str, Any]] = {
    # The weights are drawn wide, so that a wrong position or mask shows.
    "gpt2": _SPECIAL
    | {"n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.2},
    "llama": _SPECIAL
    | {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"num_key_value_heads": 1, "intermediate_size": 20, "max_position_embeddings": 16}
    | {"tie_word_embeddings": False, "initializer_range": 0.2},
}

LORA: dict[str, dict[str, Any]] = {
    kind: {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.3}
    | {"target_modules": modules, **more}
    for kind, modules, more in (
        ("gpt2", ["c_attn", "c_fc"], {"fan_in_fan_out": True}),
        ("llama", ["q_proj", "v_proj", "down_proj"], {}),
    )
}
"""Of `peft.LoraConfig`. PPO never has the dropout on."""


@dataclass(frozen=True)
class Case:
    """One setting of the trainer.

    Attributes:
        kind: of `MODEL_CONFIGS`.
        config: fields of PPOConfig that are not the default.
        padding_side: of TRL's tokenizer. Ours lays a batch out in a way of its own.
        lengths: "mixed" (queries of 2 to 7 tokens, responses of 1 to 6), "equal" (5 and 5) or
            "single" (mixed queries, responses of one token).
        masked: whether some response tokens are masked out.
        reference: "separate" (other weights, so that the KL is not 0 at the start), "default"
            (`ref_model=None`), "adapter off" (the same, of a policy with a new adapter `LORA`),
            "copy" or "shared" (`create_reference_model`, without and with
            `num_shared_layers=1`) or "default shared" (`PPOTrainer(num_shared_layers=1)`).
        adam: the default optimizer instead of plain gradient descent.
        learning_rate: large enough that clips and thresholds are at work.
        mended: what is put right in TRL, where it is known to be wrong (see `record.py`).
        in_dataloader: step inside a loop over a dataloader.
        steps: how many to take.
        fires: names of `CHECKS`: what must have happened in TRL for the case to show something.
        equal: False for an intended difference: there ours must *not* agree.
    """

    kind: str = "gpt2"
    config: dict[str, Any] = field(default_factory=dict)
    padding_side: str = "right"
    lengths: str = "mixed"
    masked: bool = False
    reference: str = "separate"
    adam: bool = False
    learning_rate: float = 0.02
    mended: str | None = None
    in_dataloader: bool = False
    steps: int = 10
    fires: tuple[str, ...] = ("policy clip", "value clip")
    equal: bool = True

    def ppo_config(self) -> dict[str, Any]:
        """All arguments of PPOConfig."""
        return {"batch_size": BATCH_SIZE, "mini_batch_size": BATCH_SIZE, "seed": 0} | {
            "learning_rate": self.learning_rate,
            **self.config,
        }

    def inputs_key(self) -> str:
        """Cases of one key have the same inputs."""
        return f"{self.lengths}, masked" if self.masked else self.lengths

    def recorded_steps(self) -> tuple[int, ...]:
        return tuple(s for s in RECORDED_STEPS if s <= self.steps)


_ACCUMULATION = {"mini_batch_size": 2, "gradient_accumulation_steps": 2}
CASES: dict[str, Case] = {
    "kl": Case(),
    "kl_abs": Case(config={"kl_penalty": "abs"}),
    "kl_mse": Case(config={"kl_penalty": "mse"}),
    "kl_full": Case(config={"kl_penalty": "full"}),
    "llama": Case("llama"),
    "llama_kl_full": Case("llama", {"kl_penalty": "full"}),
    "fixed_controller": Case(
        config={"adap_kl_ctrl": False, "init_kl_coef": 0.7}, fires=("policy clip", "fixed beta")
    ),
    "adaptive_controller": Case(
        config={"kl_penalty": "abs", "target": 0.9, "horizon": 100},
        fires=("policy clip", "moving beta", "between the controller's limits"),
    ),
    "gamma_lambda": Case(config={"gamma": 0.9, "lam": 0.7}),
    "whiten_rewards": Case("llama", {"whiten_rewards": True}, padding_side="left"),
    "whiten_rewards_equal_lengths": Case(config={"whiten_rewards": True}, lengths="equal"),
    "score_scaling": Case(
        config={"use_score_scaling": True}, mended="score scaling", fires=("scaled scores",)
    ),
    "score_scaling_norm": Case(
        config={"use_score_scaling": True, "use_score_norm": True},
        mended="score scaling",
        fires=("centred scores",),
    ),
    "score_clip": Case(config={"score_clip": 0.8}, fires=("clipped scores",)),
    "score_scaling_norm_clip": Case(
        config={"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.8},
        mended="score scaling",
        fires=("clipped scores",),
    ),
    "mini_batches": Case(config={"mini_batch_size": 2}, learning_rate=0.01),
    "accumulation": Case(config=_ACCUMULATION),
    "one_epoch": Case(
        config={"ppo_epochs": 1, "mini_batch_size": 2}, fires=("policy clip", "value clip")
    ),
    "seven_epochs": Case(config={"ppo_epochs": 7}, learning_rate=0.01),
    "wide_clips_all_of_the_value_loss": Case(
        config={"cliprange": 0.4, "cliprange_value": 0.5, "vf_coef": 1.0}, learning_rate=0.01
    ),
    "ratio_threshold": Case(
        config={"ratio_threshold": 1.02, "mini_batch_size": 4}, fires=("skipped", "not all skipped")
    ),
    "early_stopping": Case(
        config={"early_stopping": True, "target_kl": 0.01, "ppo_epochs": 6},
        fires=("stopped early", "not at once"),
    ),
    "gradient_clipping": Case(
        config={"max_grad_norm": 0.3},
        mended="gradient clipping",
        learning_rate=0.1,
        fires=("clipped gradients", "policy clip"),
    ),
    "left_padding": Case("llama", padding_side="left"),
    "left_padding_gpt2_with_positions": Case(padding_side="left", mended="positions"),
    "single_tokens": Case(lengths="single", learning_rate=0.01, fires=("single tokens",)),
    "response_mask": Case(masked=True, fires=("masked tokens", "policy clip")),
    "response_mask_left": Case(
        "llama", masked=True, padding_side="left", fires=("masked tokens", "policy clip")
    ),
    "default_reference": Case(reference="default", fires=("starts at the reference",)),
    "copied_reference": Case("llama", reference="copy", fires=("starts at the reference",)),
    "shared_layers": Case(
        reference="shared", learning_rate=0.03, fires=("starts at the reference", "frozen layers")
    ),
    "shared_layers_llama": Case(
        "llama", reference="shared", fires=("starts at the reference", "frozen layers")
    ),
    "default_reference_shared": Case(
        "llama", reference="default shared", fires=("starts at the reference", "frozen layers")
    ),
    "lora": Case(
        "llama",
        {"mini_batch_size": 4},
        reference="adapter off",
        learning_rate=0.03,
        fires=("policy clip", "starts at the reference", "frozen layers"),
    ),
    "lora_adam": Case(
        reference="adapter off",
        adam=True,
        learning_rate=5e-3,
        fires=("policy clip", "starts at the reference", "frozen layers"),
    ),
    "adam": Case(adam=True, learning_rate=1e-3),
    "adam_llama_mini_batches": Case("llama", {"mini_batch_size": 4}, adam=True, learning_rate=5e-4),
    # Intended differences: TRL as it is. Ours agrees up to where the difference begins.
    "trl_gradient_clipping": Case(
        config={"max_grad_norm": 0.3, "ppo_epochs": 1},
        learning_rate=0.1,
        steps=3,
        fires=("clipped gradients",),
        equal=False,
    ),
    "trl_left_padding_gpt2": Case(padding_side="left", steps=1, fires=(), equal=False),
    "trl_whiten_rewards_padded": Case(
        config={"whiten_rewards": True}, steps=1, fires=(), equal=False
    ),
    "trl_accumulation_in_dataloader": Case(
        config=_ACCUMULATION, in_dataloader=True, steps=1, fires=(), equal=False
    ),
}


Stats = list[dict[str, float]]
Evidence = dict[str, Any]


def _any(key: str, condition: Callable[[float], bool]) -> Callable[[Stats, Evidence], bool]:
    return lambda stats, evidence: any(condition(s[key]) for s in stats)


CHECKS: dict[str, Callable[[Stats, Evidence], bool]] = {
    "policy clip": _any("ppo/policy/clipfrac", lambda x: 0 < x < 1),
    "value clip": _any("ppo/val/clipfrac", lambda x: 0 < x < 1),
    "fixed beta": lambda stats, _: len({s["objective/kl_coef"] for s in stats}) == 1,
    "moving beta": lambda stats, _: len({s["objective/kl_coef"] for s in stats}) == len(stats),
    "between the controller's limits": lambda stats, _: any(
        abs(s["objective/kl"] / 0.9 - 1) < 0.2 for s in stats
    ),
    "scaled scores": lambda stats, e: all(
        abs(s["ppo/std_scores"] / raw - 1) > 0.05
        for s, raw in zip(stats, e["raw_score_std"], strict=True)
    ),
    "centred scores": lambda stats, e: all(
        abs(s["ppo/mean_scores"]) < abs(raw)
        for s, raw in zip(stats[:1], e["raw_score_mean"], strict=False)
    ),
    "clipped scores": lambda _, e: e["scores_at_the_clip"] > 0,
    "skipped": lambda _, e: sum(e["skipped"]) > 0,
    "not all skipped": lambda _, e: 0 < sum(e["skipped"]) < sum(e["mini_batches"]),
    "stopped early": lambda _, e: min(e["epochs"]) < 6,
    "not at once": lambda _, e: max(e["epochs"]) > 1,
    "clipped gradients": lambda _, e: e["largest_gradient_norm"] > 0.3,
    "single tokens": lambda stats, _: {s["tokens/responses_len_mean"] for s in stats} == {1.0},
    "masked tokens": lambda _, e: e["masked_tokens"] > 0,
    "starts at the reference": lambda stats, _: (
        abs(stats[0]["objective/kl"]) < 1e-5 < abs(stats[-1]["objective/kl"])
    ),
    "frozen layers": lambda _, e: e["frozen_tensors"] > 5,
}


def unfired(case: Case, stats: Stats, evidence: Evidence) -> list[str]:
    """The checks of the case that do not hold: what it is named for did not happen in TRL."""
    return [name for name in case.fires if not CHECKS[name](stats, evidence)]


@dataclass(frozen=True)
class Inputs:
    """What one step is given; B lists of 1-d tensors."""

    queries: list[Tensor]
    responses: list[Tensor]
    scores: list[Tensor]
    masks: list[Tensor] | None


def inputs(case: Case, step: int) -> Inputs:
    """The inputs of a step, 1 for the first, as they are drawn for recording."""
    random = torch.Generator().manual_seed(1000 + step)

    def ids(low: int, high: int) -> list[Tensor]:
        lengths = torch.randint(low, high + 1, (BATCH_SIZE,), generator=random).tolist()
        return [torch.randint(3, VOCABULARY, (n,), generator=random) for n in lengths]

    queries = ids(5, 5) if case.lengths == "equal" else ids(2, 7)
    responses = {
        "mixed": lambda: ids(1, 6),
        "equal": lambda: ids(5, 5),
        "single": lambda: ids(1, 1),
    }
    responses = responses[case.lengths]()
    scores = list(1.5 * torch.randn(BATCH_SIZE, generator=random) + 0.5)
    masks = None
    if case.masked:
        masks = [torch.randint(0, 2, (len(r),), generator=random) for r in responses]
        for mask in masks:
            mask[int(torch.randint(len(mask), (), generator=random))] = 1  # one token must count
    return Inputs(queries, responses, scores, masks)
