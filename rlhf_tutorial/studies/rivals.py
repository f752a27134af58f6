"""What people use beside PPO: the same prompts, judge, sampling settings and trained layers.

RLOO (Ahmadian et al. 2024, arXiv 2402.14740), GRPO (Shao et al. 2024, arXiv 2402.03300) and DPO
(Rafailov et al. 2023, arXiv 2305.18290) are TRL's own trainers. Best-of-n trains nothing.
"""

from __future__ import annotations

import gc
import math
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ..assets import Bundled, resolve
from ..device import trains_in_bf16
from ..dialogues import query_turns
from ..errors import DataError
from ..evaluation.sampling import Answers, sample_answers
from ..feedback import load_feedback
from ..feedback import pairs as pairs_of
from ..models import AutoModelForCausalLMWithValueHead, set_training_attention
from ..quiet import quiet_transformers
from ..randomness import preserved_random_state
from ..scores import Reward, checked_scores
from ..training import batches_of, train

if TYPE_CHECKING:
    from datasets import Dataset

    from ..run import Run


TokenPair = dict[str, list[int]]  # {"prompt_ids", "chosen_ids", "rejected_ids"}
After = Callable[[int, AutoModelForCausalLMWithValueHead], None]
"""Is told the number of steps done, and the policy as it is then."""


@dataclass(frozen=True)
class Trained:
    """A trained policy and what it cost."""

    model: AutoModelForCausalLMWithValueHead
    seconds: float
    """Of the training, with the sampling in it; loading is left out."""
    answers: int
    """How many were sampled."""
    log: list[dict[str, float]] = field(default_factory=list)
    """A row of numbers per step."""


def train_ppo(
    run: Run, reward: Reward, *, steps: int, after: After | None = None, **ppo: Any
) -> Trained:
    """The course's own PPO for a number of steps; `ppo` are fields of `PPOConfig`."""
    trainer = run.make_trainer(steps=steps, **ppo)
    epochs = -(-steps // len(batches_of(trainer)))
    start, log = time.perf_counter(), []
    # range comes first in zip: the other way round, zip would train one step more before it stops.
    for step, stats in zip(
        range(1, steps + 1),
        train(
            trainer,
            reward,
            run.preset.template,
            epochs=epochs,
            max_new_tokens=run.preset.max_new_tokens,
        ),
        strict=False,
    ):
        log.append({"reward": float(stats["ppo/mean_scores"]), "kl": float(stats["objective/kl"])})
        if after:
            after(step, trainer.policy)
    seconds = time.perf_counter() - start
    return Trained(trainer.policy, seconds, steps * trainer.config.batch_size, log)


def train_online(
    method: Literal["rloo", "grpo"],
    run: Run,
    reward: Reward,
    *,
    steps: int,
    learning_rate: float,
    beta: float,
    batch_size: int = 16,
    num_generations: int = 4,
    seed: int = 0,
    after: After | None = None,
    **settings: Any,
) -> Trained:
    """TRL's RLOO or GRPO: `batch_size` answers a step, `num_generations` to each prompt.

    Args:
        beta: weight of the KL to the reference: in RLOO of the reward, as in PPO; in GRPO of a term
            of the loss, beside advantages that were divided by their standard deviation.
        settings: others of TRL's `RLOOConfig` or `GRPOConfig`, such as `num_iterations`, which is
            how many updates a batch gets.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    config_of, trainer_of = {"rloo": (RLOOConfig, RLOOTrainer), "grpo": (GRPOConfig, GRPOTrainer)}[
        method
    ]
    template, queries = run.load_template(), run.queries()["query"][:]
    # As text: from a conversation TRL would also render the template's default system message.
    rows = {
        "prompt": [template.render(query_turns(query)) for query in queries],
        "query": queries,
    }

    def judged(completion_ids: list[list[int]], query: list[str], **_: Any) -> list[float]:
        answers = template.decode([torch.tensor(ids) for ids in completion_ids])
        return checked_scores(reward(query, answers), len(query))

    sizes = {"num_generations": num_generations, "max_completion_length": run.preset.max_new_tokens}
    with tempfile.TemporaryDirectory() as scratch, preserved_random_state(), quiet_transformers():
        trainer = trainer_of(
            model=untouched_policy(run),
            reward_funcs=judged,
            args=config_of(
                **shared_arguments(run, scratch, learning_rate, batch_size, seed),
                **sizes,
                max_steps=steps * settings.get("num_iterations", 1),
                beta=beta,
                temperature=run.temperature,
                log_completions=False,
                **settings,
            ),
            train_dataset=Dataset.from_dict(rows),
            processing_class=template.tokenizer,
        )
        done = run_trainer(trainer, steps * batch_size, after)
        del trainer
    gc.collect()  # a trainer refers to itself: reference and optimiser would stay in memory
    return done


def train_dpo(
    run: Run,
    pairs: Sequence[TokenPair],
    *,
    learning_rate: float,
    beta: float = 0.1,
    epochs: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    answers: int = 0,
    seconds: float = 0.0,
    after: After | None = None,
) -> Trained:
    """TRL's DPO on pairs of token ids.

    Args:
        answers, seconds: what was sampled to make the pairs, and how long that took: it is added.

    Raises:
        DataError: without a pair.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    if not pairs:
        raise DataError("DPO has no pairs: give it at least one")
    with tempfile.TemporaryDirectory() as scratch, preserved_random_state(), quiet_transformers():
        trainer = DPOTrainer(
            model=untouched_policy(run),
            args=DPOConfig(
                **shared_arguments(run, scratch, learning_rate, batch_size, seed),
                num_train_epochs=epochs,
                beta=beta,
                max_length=None,
            ),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}]),
            processing_class=run.load_tokenizer(),
        )
        # As token ids: TRL would end every text with EOS, also answers that were cut off.
        trainer.train_dataset = Dataset.from_list(list(pairs))
        done = run_trainer(trainer, answers, after)
        del trainer
    gc.collect()  # as above
    return Trained(done.model, done.seconds + seconds, done.answers, done.log)


def sampled_pairs(
    run: Run, reward: Reward, *, seed: int = 0, limit: int | None = None
) -> list[TokenPair]:
    """Two answers of the untouched policy to each training prompt, the better one chosen.

    Better is what `reward` says; where it says nothing, there is no pair.
    """
    queries = run.queries()
    queries = queries.select(range(min(limit or len(queries), len(queries))))
    texts, ids = queries["query"][:], queries["input_ids"][:]
    sample = untouched_sampler(run)
    drawn = [sample(ids, 2 * seed + i) for i in range(2)]
    scores = [checked_scores(reward(texts, answers.texts), len(texts)) for answers in drawn]
    pairs = []
    for n, (first, second) in enumerate(zip(*scores, strict=True)):
        if first != second:
            better = 0 if first > second else 1
            chosen, rejected = (drawn[i].responses[n] for i in (better, 1 - better))
            pairs.append(_pair(ids[n], chosen, rejected))
    return pairs


def graded_pairs(run: Run, limit: int | None = None, *, seed: int = 0) -> list[TokenPair]:
    """Pairs of the untouched policy's answers that a reader graded, drawn by the seed.

    A prompt with four answers can be in up to six of them.

    Args:
        limit: how many; all by default.
    """
    rows = load_feedback(resolve(Bundled("feedback")) / "train.jsonl")
    template, drawn = run.load_template(), pairs_of(rows)
    ended = {(row["prompt"], a["text"]): a["ended"] for row in rows for a in row["answers"]}

    def ids(prompt: str, text: str) -> list[int]:
        end = template.eos_token_ids[:1] if ended[prompt, text] else []
        return [*template.tokenizer(text, add_special_tokens=False)["input_ids"], *end]

    return [
        _pair(template.encode(prompt), ids(prompt, pair["chosen"]), ids(prompt, pair["rejected"]))
        for pair in random.Random(seed).sample(drawn, min(limit or len(drawn), len(drawn)))
        for prompt in [pair["prompt"]]
    ]


def best_of_n(
    run: Run, reward: Reward, queries: Dataset, n: int, *, seed: int = 0
) -> tuple[list[str], list[list[float]]]:
    """Of n answers of the untouched policy to each query the one that `reward` scores highest.

    Returns:
        The answers, and all scores, (n, queries), so that what fewer would have given is known.
    """
    texts, ids = queries["query"][:], queries["input_ids"][:]
    sample = untouched_sampler(run)
    answers = [sample(ids, 1000 * seed + i).texts for i in range(n)]
    scores = [checked_scores(reward(texts, drawn), len(texts)) for drawn in answers]
    best = np.argmax(scores, axis=0)
    return [answers[b][i] for i, b in enumerate(best)], scores


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n in nats, which best-of-n's KL to the untouched policy does not exceed.

    Stiennon et al. (2020), appendix G.3; Beirami et al. (2024, arXiv 2401.01879) prove the bound.
    """
    return float(np.log(n) - (n - 1) / n)


def untouched_sampler(run: Run) -> Callable[[Sequence[torch.Tensor], int], Answers]:
    """The untouched policy, loaded once: of queries and a seed, an answer to each."""
    policy, template = run.load_policy().to(run.device), run.load_template()

    def sample(ids: Sequence[torch.Tensor], seed: int) -> Answers:
        return sample_answers(
            policy,
            template,
            list(ids),
            max_new_tokens=run.preset.max_new_tokens,
            temperature=run.temperature,
            seed=seed,
        )

    return sample


def _pair(prompt: Any, chosen: Any, rejected: Any) -> TokenPair:
    def as_list(ids: Any) -> list[int]:
        return ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)

    return {
        "prompt_ids": as_list(prompt),
        "chosen_ids": as_list(chosen),
        "rejected_ids": as_list(rejected),
    }


def untouched_policy(run: Run) -> Any:
    """The untouched language model with the preset's layers frozen.

    It remembers the folder that it came from: TRL loads its reference from there.
    """
    model = run.load_policy()
    if run.preset.num_shared_layers is not None:
        model.freeze_lowest_layers(run.preset.num_shared_layers)
    set_training_attention(model.pretrained_model, run.device)
    return model.pretrained_model


def shared_arguments(
    run: Run, folder: str, learning_rate: float, batch_size: int, seed: int
) -> dict[str, Any]:
    """What all of TRL's trainers are told, so that they differ in the method alone."""
    return {
        "output_dir": folder,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear" if run.preset.learning_rate_decays else "constant",
        # In quarters, which add up to the gradient of the whole: TRL makes several copies of the
        # logits, and those of 16 pairs at once take gigabytes.
        "per_device_train_batch_size": batch_size // math.gcd(batch_size, 4),
        "gradient_accumulation_steps": math.gcd(batch_size, 4),
        "max_grad_norm": 1.0,
        "seed": seed,
        "use_cpu": run.device.type == "cpu",
        "bf16": trains_in_bf16(run.device, run.preset.num_shared_layers is not None),
        "activation_checkpointing": False,
        "dataloader_pin_memory": run.device.type == "cuda",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }


def run_trainer(trainer: Any, answers: int, after: After | None = None) -> Trained:
    """Run it, time it, and take the model out of what TRL and accelerate wrapped it in."""
    from transformers import PrinterCallback, TrainerCallback

    trainer.remove_callback(PrinterCallback)
    if after:
        tell: After = after

        class Look(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                # The model keeps what accelerate wrapped around it: the training goes on with it.
                with preserved_random_state():  # a value head is drawn
                    policy = AutoModelForCausalLMWithValueHead.from_pretrained(kwargs["model"])
                tell(state.global_step, policy)
                kwargs["model"].train()  # TRL logs what it has of the mode that the model is in

        trainer.add_callback(Look())
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return Trained(
        AutoModelForCausalLMWithValueHead.from_pretrained(model),
        seconds,
        answers,
        [_numbers(row) for row in trainer.state.log_history],
    )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, (int, float))}
