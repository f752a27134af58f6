"""Drive TRL 0.11.4's PPOTrainer through the cases of `parity_cases.py`, and write down the numbers.

    python scripts/parity/record.py FOLDER      # in the environment of requirements.txt

Leaves in FOLDER, for each case, `<case>.json` (statistics of every step, permutations of the
mini-batches, evidence that the mechanism fired, and the spread: how far TRL with eager attention is
from TRL with sdpa attention, the largest difference per quantity) and `<case>.safetensors` (of some
steps: per-token tensors at the unmasked response tokens, row by row, and the weights after the
step); `weights_<kind>.safetensors`, the policy and the separate reference at the start, and
`adapter_<kind>.safetensors`, what a policy with an adapter has more;
`inputs.json`, what each step was given; `defaults.json`, the defaults of TRL's PPOConfig and two of
its faults; and `checkpoint/`, a policy as TRL saves it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState, PartialState
from datasets import Dataset
from parity_cases import (
    BATCH_SIZE,
    CASES,
    EOS,
    LORA,
    MODEL_CONFIGS,
    PAD,
    VOCABULARY,
    Case,
    inputs,
    unfired,
)
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from trl import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)

Policy = AutoModelForCausalLMWithValueHead
PER_TOKEN = ("ppo/policy/ratio", "ppo/policy/advantages", "objective/logprobs")
PER_TOKEN += ("objective/ref_logprobs",)


def tokenizer(padding_side: str) -> transformers.PreTrainedTokenizerFast:
    """Words w3, w4, ... for the token ids: it only pads."""
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side=padding_side,
    )


def build(kind: str, seed: int, attention: str, adapter: bool = False) -> Policy:
    """A policy with weights drawn from `seed`, with the adapter `LORA` or without."""
    config, cls = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[kind]
    torch.manual_seed(seed)
    model = cls._from_config(config(**MODEL_CONFIGS[kind]), attn_implementation=attention)
    return Policy.from_pretrained(model, peft_config=LoraConfig(**LORA[kind]) if adapter else None)


def build_reference(kind: str, attention: str) -> Policy:
    """The separate reference: a few nats from the policy. Another model would be tens away."""
    policy, other = build(kind, 0, attention), build(kind, 1, attention)
    with torch.no_grad():
        for p, q in zip(policy.parameters(), other.parameters(), strict=True):
            p.add_(0.1 * (q - p))
    return policy


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def with_positions(tokenizer: Any) -> Any:
    """TRL's collator, with the position ids that TRL leaves out."""
    plain = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(rows: list[dict[str, Tensor]]) -> Any:
        batch = plain(rows)
        batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return batch

    return collate


def make_trainer(case: Case, attention: str) -> PPOTrainer:
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    policy = build(case.kind, 0, attention, case.reference == "adapter off")
    reference = {
        "separate": lambda: build_reference(case.kind, attention),
        "copy": lambda: create_reference_model(policy),
        "shared": lambda: create_reference_model(policy, num_shared_layers=1),
    }.get(case.reference, lambda: None)()
    optimizer = None
    if not case.adam:
        optimizer = torch.optim.SGD(policy.parameters(), lr=case.learning_rate)
    words = tokenizer(case.padding_side)
    data = Dataset.from_dict({"input_ids": [[3]] * BATCH_SIZE})
    trainer = PPOTrainer(
        PPOConfig(**case.ppo_config(), accelerator_kwargs={"cpu": True}),
        policy,
        reference,
        words,
        dataset=data,
        data_collator=lambda rows: rows,
        optimizer=optimizer,
        num_shared_layers=1 if case.reference == "default shared" else None,
        training_data_collator=with_positions(words) if case.mended == "positions" else None,
    )
    if case.mended == "gradient clipping":  # TRL's generator is used up by the first update
        trainer.model_params = [p for p in policy.parameters() if p.requires_grad]
    if case.mended == "score scaling":
        trainer.running = TensorMoments(trainer.running)
    return trainer


class TensorMoments:
    """TRL's running moments as the tensors that its step() takes them for.

    They are floats, and `use_score_scaling` ends in an AttributeError.
    """

    def __init__(self, moments: Any) -> None:
        self.update, self._moments = moments.update, moments

    @property
    def mean(self) -> Tensor:
        return torch.tensor(self._moments.mean)

    @property
    def std(self) -> Tensor:
        return torch.tensor(self._moments.std)


class Recorder:
    """Watches a trainer through one case."""

    def __init__(self, case: Case, attention: str) -> None:
        self.case, self.trainer = case, make_trainer(case, attention)
        self.tensors: dict[str, Tensor] = {}
        self.stats: list[dict[str, float]] = []
        self.shapes: dict[str, list[int]] = {}
        self.permutations: list[list[list[int]]] = []
        self.evidence: dict[str, Any] = {
            "raw_score_mean": [], "raw_score_std": [], "scores_at_the_clip": 0, "skipped": [],
            "mini_batches": [], "epochs": [], "largest_gradient_norm": 0.0, "masked_tokens": 0,
        }  # fmt: skip
        self.seen: dict[str, Any] = {}
        self._watch()

    def _watch(self) -> None:
        trainer, seen = self.trainer, self.seen
        forward, rewards = trainer.batched_forward_pass, trainer.compute_rewards
        advantages, clip = trainer.compute_advantages, trainer.accelerator.clip_grad_norm_

        def watched_forward(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if not torch.is_grad_enabled():  # the policy first, then the reference
                seen.setdefault("passes", []).append(output)
            return output

        def watched_rewards(scores: Tensor, *args: Any) -> Any:
            seen["scores"], seen["rewards"] = scores, rewards(scores, *args)
            return seen["rewards"]

        def watched_advantages(*args: Any) -> Any:
            seen["advantages"] = advantages(*args)
            return seen["advantages"]

        def watched_clip(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            largest = max(float(norm), self.evidence["largest_gradient_norm"])
            self.evidence["largest_gradient_norm"] = largest
            return norm

        trainer.batched_forward_pass, trainer.compute_rewards = watched_forward, watched_rewards
        trainer.compute_advantages = watched_advantages
        trainer.accelerator.clip_grad_norm_ = watched_clip

    def step(self, number: int) -> None:
        case, trainer, seen = self.case, self.trainer, self.seen
        given = inputs(case, number)
        seen.clear()
        drawn: list[np.ndarray] = []
        permutation = np.random.permutation
        np.random.permutation = lambda n: drawn.append(permutation(n)) or drawn[-1]
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                stats = trainer.step(given.queries, given.responses, given.scores, given.masks)
        finally:
            np.random.permutation = permutation
        skipped = sum("exceeds threshold" in str(w.message) for w in caught)

        (logprobs, _, values, mask), (ref_logprobs, *_) = seen["passes"]
        rewards, _, kl = seen["rewards"]
        values, advantages, returns = seen["advantages"]
        mask = mask.bool()
        mini_batch = trainer.config.mini_batch_size
        orders = [torch.from_numpy(p) for p in drawn]
        rows = torch.cat(orders)
        self._note(given, stats, skipped, mask, len(drawn))
        self.permutations.append([p.tolist() for p in drawn])
        if number in case.recorded_steps():
            per_token = {
                "logprobs": logprobs, "ref_logprobs": ref_logprobs, "values": values, "kl": kl,
                "rewards": rewards, "advantages": advantages, "returns": returns,
            }  # fmt: skip
            recorded = {name: tensor[mask] for name, tensor in per_token.items()}
            for name in ("ratio", "advantages"):  # of all mini-batches, one after the other
                flat = torch.as_tensor(stats[f"ppo/policy/{name}"]).view(len(rows), -1)
                recorded[f"stats_{name}"] = flat[mask[rows]]
            assert len(rows) % mini_batch == 0
            recorded["kl_dist"] = torch.as_tensor(stats["objective/kl_dist"])
            recorded |= {f"weights/{k}": v for k, v in weights(trainer.model).items()}
            self.tensors |= {
                f"step{number}/{k}": v.detach().float().contiguous() for k, v in recorded.items()
            }

    def _note(
        self, given: Any, stats: dict[str, Any], skipped: int, mask: Tensor, epochs: int
    ) -> None:
        scalars = {k: float(v) for k, v in stats.items() if np.ndim(v) == 0}
        self.stats.append({k: v for k, v in scalars.items() if not k.startswith("time/")})
        self.shapes = {k: list(np.shape(v)) for k, v in stats.items() if k not in PER_TOKEN}
        raw = torch.stack(given.scores)
        evidence, config = self.evidence, self.trainer.config
        evidence["raw_score_mean"].append(raw.mean().item())
        evidence["raw_score_std"].append(raw.std().item())
        if config.score_clip is not None:
            at_clip = (self.seen["scores"].abs() == config.score_clip).sum()
            evidence["scores_at_the_clip"] += int(at_clip)
        evidence["skipped"].append(skipped)
        evidence["mini_batches"].append(epochs * BATCH_SIZE // config.mini_batch_size)
        evidence["epochs"].append(epochs)
        evidence["masked_tokens"] += sum(map(len, given.responses)) - int(mask.sum())
        parameters = list(self.trainer.model.parameters())
        evidence["frozen_tensors"] = sum(not p.requires_grad for p in parameters)

    def run(self) -> Recorder:
        for number in range(1, self.case.steps + 1):
            if self.case.in_dataloader:
                for _ in self.trainer.dataloader:  # one batch, so the last one
                    self.step(number)
            else:
                self.step(number)
        return self


def spread(a: Recorder, b: Recorder) -> dict[str, float]:
    """The largest difference of each quantity between two runs of the same case."""
    largest: dict[str, float] = {}

    def note(name: str, difference: float) -> None:
        largest[name] = max(largest.get(name, 0.0), difference)

    for key, tensor in a.tensors.items():
        name = "weights" if "/weights/" in key else key.split("/", 1)[1]
        same = b.tensors[key].shape == tensor.shape
        note(name, (tensor - b.tensors[key]).abs().max().item() if same else float("inf"))
    for one, other in zip(a.stats, b.stats, strict=True):
        for key in one:
            note(key, abs(one[key] - other[key]))
    return largest


def write_inputs(path: Path) -> None:
    """Each step's inputs, so that no later torch need draw the same numbers."""
    content = {}
    for case in CASES.values():
        steps = [dataclasses.asdict(inputs(case, number)) for number in range(1, 11)]
        content[case.inputs_key()] = [
            {name: v if v is None else [t.tolist() for t in v] for name, v in step.items()}
            for step in steps
        ]
    path.write_text(json.dumps(content) + "\n")


def known_faults() -> dict[str, Any]:
    """Two things that TRL 0.11.4 gets wrong, as it does them."""
    case = dataclasses.replace(CASES["score_scaling"], mended=None)
    trainer, given = make_trainer(case, "eager"), inputs(case, 1)
    try:
        error = "none"
        trainer.step(given.queries, given.responses, given.scores)
    except AttributeError as caught:
        error = str(caught)
    query = torch.tensor([5, EOS, 6, 7])
    (returned,) = trainer.generate([query], max_new_tokens=3)
    return {
        "score_scaling_error": error,
        "generate_with_eos_in_the_query": {"query": query.tolist(), "returned": returned.tolist()},
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    only = sys.argv[2:]
    for kind in MODEL_CONFIGS:
        policy, reference = build(kind, 0, "eager"), build_reference(kind, "eager")
        start = {f"policy/{k}": v for k, v in weights(policy).items()}
        start |= {f"reference/{k}": v for k, v in weights(reference).items()}
        save_file(start, folder / f"weights_{kind}.safetensors")
        adapted = weights(build(kind, 0, "eager", adapter=True))
        adapter = {k: v for k, v in adapted.items() if ".lora_" in k or "v_head" in k}
        save_file(adapter, folder / f"adapter_{kind}.safetensors")
    build("gpt2", 0, "eager").save_pretrained(folder / "checkpoint")
    defaults = {
        f.name: getattr(PPOConfig(exp_name=""), f.name) for f in dataclasses.fields(PPOConfig)
    }
    packages = ("trl", "transformers", "accelerate", "torch")
    about = {"versions": {p: version(p) for p in packages}, "defaults": defaults}
    about |= known_faults()
    (folder / "defaults.json").write_text(json.dumps(about, indent=1) + "\n")
    write_inputs(folder / "inputs.json")
    for name, case in CASES.items():
        if only and name not in only:
            continue
        eager, sdpa = (Recorder(case, attention).run() for attention in ("eager", "sdpa"))
        missing = unfired(case, eager.stats, eager.evidence)
        if missing:
            print(f"{name}: did not fire in TRL: {', '.join(missing)}")
            print(json.dumps(eager.evidence), [s["ppo/policy/clipfrac"] for s in eager.stats])
        content = {
            "case": dataclasses.asdict(case),
            "stats": eager.stats,
            "shapes": eager.shapes,
            "permutations": eager.permutations,
            "evidence": eager.evidence,
            "spread": spread(eager, sdpa),
        }
        (folder / f"{name}.json").write_text(json.dumps(content) + "\n")
        save_file(eager.tensors, folder / f"{name}.safetensors")
        last = eager.stats[-1]
        print(
            f"{name}: clip {max(s['ppo/policy/clipfrac'] for s in eager.stats):.2f}, "
            f"KL {last['objective/kl']:.2f}, weights spread {content['spread']['weights']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
