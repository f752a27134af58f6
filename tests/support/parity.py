"""Our trainer on what TRL 0.11.4 was put through (scripts/parity), compared number by number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from parity_cases import CASES, LORA, MODEL_CONFIGS, Case, Inputs
from safetensors.torch import load_file
from torch import Tensor

from rlhf_tutorial import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
)
from support import FIXTURES

RECORDED = FIXTURES / "trl"
RTOL = 1e-5
SPREADS = 3
"""How many times TRL's spread is allowed: it is one draw of rounding, and an instruction set is
another. Measured on AVX-512, AVX2 and SSE4 kernels: at most 1.8 times."""
SGD_WEIGHTS_ATOL = 1e-6
ADAM_WEIGHTS_PER_UPDATE = 0.02  # of the learning rate


@dataclass(frozen=True)
class Fixture:
    """What TRL did in a case; the fields are those of `record.py`."""

    name: str
    case: Case
    stats: list[dict[str, float]]
    shapes: dict[str, list[int]]
    permutations: list[list[list[int]]]
    evidence: dict[str, Any]
    spread: dict[str, float]
    tensors: dict[str, Tensor]


@cache
def load(name: str, folder: Path = RECORDED) -> Fixture:
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    content["case"] = CASES[name]
    return Fixture(name, **content, tensors=load_file(folder / f"{name}.safetensors"))


def inputs(case: Case, step: int) -> Inputs:
    """What TRL was given in a step, 1 for the first."""
    given = _inputs()[case.inputs_key()][step - 1]
    columns = {k: v if v is None else [torch.tensor(x) for x in v] for k, v in given.items()}
    return Inputs(**columns)


@cache
def _inputs() -> dict[str, list[dict[str, Any]]]:
    return json.loads((RECORDED / "inputs.json").read_text(encoding="utf-8"))


@cache
def atol() -> dict[str, float]:
    """Per quantity, from the largest difference of TRL with eager and TRL with sdpa attention."""
    largest: dict[str, float] = {}
    for name, case in CASES.items():
        for quantity, value in load(name).spread.items() if case.equal else ():
            largest[quantity] = max(largest.get(quantity, 0.0), SPREADS * value)
    return largest


def policy(kind: str, which: str, adapter: bool = False) -> AutoModelForCausalLMWithValueHead:
    """The "policy" or the separate "reference" of a kind, with the weights that TRL had.

    With `adapter` it is a LoRA policy, its A those that peft 0.13.2 drew.
    """
    config, cls = {
        "gpt2": (transformers.GPT2Config, transformers.GPT2LMHeadModel),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }[kind]
    peft_config = None
    if adapter:
        from peft import LoraConfig

        peft_config = LoraConfig(**LORA[kind])
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        cls._from_config(config(**MODEL_CONFIGS[kind]), attn_implementation="eager"),
        peft_config=peft_config,
    )
    saved = load_file(RECORDED / f"weights_{kind}.safetensors")
    saved = {key.split("/")[1]: v for key, v in saved.items() if key.startswith(f"{which}/")}
    parameters = dict(model.named_parameters())
    if adapter:
        saved |= load_file(RECORDED / f"adapter_{kind}.safetensors")
        # PEFT wraps the model, and the layers that it puts an adapter on.
        parameters = {
            without_peft(name) if name not in saved else name: p for name, p in parameters.items()
        }
    with torch.no_grad():
        for name, value in saved.items():
            parameters.pop(ours(name)).copy_(value)
    assert not parameters, f"TRL has no {list(parameters)}"
    return model


def without_peft(name: str) -> str:
    """The name of one of the language model's own parameters before PEFT wrapped the model."""
    return name.replace(".base_model.model.", ".", 1).replace(".base_layer.", ".")


def ours(name: str) -> str:
    """Our name of one of TRL's parameters."""
    return name.replace("v_head.summary.", "v_head.")


def make_trainer(case: Case, tokenizer: Any, dataset: Any = None) -> PPOTrainer:
    model = policy(case.kind, "policy", adapter=case.reference == "adapter off")
    reference = {
        "separate": lambda: policy(case.kind, "reference"),
        "copy": lambda: create_reference_model(model),
        "shared": lambda: create_reference_model(model, num_shared_layers=1),
    }.get(case.reference, lambda: None)()
    optimizer = None
    if not case.adam:
        optimizer = torch.optim.SGD(model.parameters(), lr=case.learning_rate)
    return PPOTrainer(
        PPOConfig(**case.ppo_config()),
        model,
        reference,
        tokenizer,
        dataset,
        optimizer=optimizer,
        num_shared_layers=1 if case.reference == "default shared" else None,
    )


Step = tuple[int, dict[str, Any], dict[str, Tensor]]


def replay(fixture: Fixture, tokenizer: Any, steps: int | None = None) -> Iterator[Step]:
    """Each step's number, stats and, under the fixture's names, tensors."""
    trainer = make_trainer(fixture.case, tokenizer)
    optimise, seen = trainer.optimise, []
    trainer.optimise = lambda *args: seen.append(args) or optimise(*args)
    for number in range(1, (steps or fixture.case.steps) + 1):
        orders = [torch.tensor(p) for p in fixture.permutations[number - 1]]
        left = iter(orders)
        trainer.permutation = lambda n, left=left: next(left)
        given = inputs(fixture.case, number)
        seen.clear()
        try:
            stats = trainer.step(given.queries, given.responses, given.scores, given.masks)
        except StopIteration:
            raise AssertionError(f"step {number}: more epochs than in TRL") from None
        assert next(left, None) is None, f"step {number}: fewer epochs than in TRL"
        ((batch, experience, *_),) = seen
        mask, rows = batch.mask.bool().cpu(), torch.cat(orders)
        tensors = {k: v.cpu()[mask] for k, v in vars(experience).items() if k != "penalty"}
        for name in ("ratio", "advantages"):
            flat = torch.as_tensor(stats[f"ppo/policy/{name}"]).view(len(rows), -1)
            tensors[f"stats_{name}"] = flat[mask[rows]]
        tensors["kl_dist"] = torch.as_tensor(stats["objective/kl_dist"])
        parameters = {k: v.detach().clone().cpu() for k, v in trainer.model.named_parameters()}
        tensors |= {f"weights/{k}": v for k, v in parameters.items()}
        yield number, stats, tensors


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """A parameter without attention's key bias.

    It shifts a query's scores for all keys alike, which softmax undoes. Its gradient is rounding
    noise, and Adam divides noise by its own size: TRL differs there from itself.
    """
    if name.endswith("attn.c_attn.bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor


def recorded(fixture: Fixture) -> Iterator[Step]:
    """TRL's own steps, in the form of `replay`."""
    for number, stats in enumerate(fixture.stats, start=1):
        prefix = f"step{number}/"
        tensors = {
            ours(key.removeprefix(prefix)): value
            for key, value in fixture.tensors.items()
            if key.startswith(prefix)
        }
        yield number, stats, tensors


def differences(fixture: Fixture, tokenizer: Any, steps: int | None = None) -> list[str]:
    """What our trainer does not do as TRL did, a line each; empty if it does all of it."""
    return compare(fixture, replay(fixture, tokenizer, steps))


def compare(fixture: Fixture, run: Iterator[Step]) -> list[str]:
    """What in `run` is not as in the fixture, a line each; empty if all is."""
    case, updates, found = fixture.case, 0.0, []

    def check(number: int, name: str, a: Any, b: Any, rtol: float, atol: float) -> None:
        a, b = torch.as_tensor(a, dtype=torch.double), torch.as_tensor(b, dtype=torch.double)
        if a.shape != b.shape:
            found.append(f"step {number}, {name}: shape {tuple(a.shape)}, TRL {tuple(b.shape)}")
        elif not ((a - b).abs() <= rtol * b.abs() + atol).all():
            worst = ((a - b).abs() - rtol * b.abs()).max()
            found.append(f"step {number}, {name}: {worst:.1e} off, {atol:.1e} allowed")

    try:
        for number, stats, tensors in run:
            for key, value in fixture.stats[number - 1].items():
                check(number, key, stats[key], value, RTOL, atol()[key])
            config = case.ppo_config()
            per_update = config["mini_batch_size"] * config.get("gradient_accumulation_steps", 1)
            updates += len(fixture.permutations[number - 1]) * (config["batch_size"] / per_update)
            weights_atol = SGD_WEIGHTS_ATOL
            if case.adam:
                weights_atol = ADAM_WEIGHTS_PER_UPDATE * case.learning_rate * updates
            for key, value in fixture.tensors.items():
                step, name = key.split("/", 1)
                if step != f"step{number}":
                    continue
                if name.startswith("weights/"):
                    actual = tensors[ours(name)]
                    if case.adam:
                        value, actual = (without_key_bias(name, t) for t in (value, actual))
                    check(number, name, actual, value, 0.0, weights_atol)
                else:
                    check(number, name, tensors[name], value, RTOL, atol()[name])
    except AssertionError as error:
        found.append(str(error))
    return found
