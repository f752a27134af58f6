"""A run of the course: the folder where each stage leaves its work and the next one finds it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .assets import Source, resolve
from .data import dialogues_of, last_reply, load_preferences, load_queries, prepare_queries
from .device import default_device, processor_name, trains_in_bf16
from .errors import TutorialError, loading, reason
from .families import context_length
from .interruption import Interruption
from .lora import all_linear
from .models import (
    AutoModelForCausalLMWithValueHead,
    create_reference_model,
    load_tokenizer,
    set_training_attention,
)
from .ppo import PPOConfig, PPOTrainer
from .ppo.processes import any_process, main_process_first
from .presets import Preset
from .reward import load_judge, rule_of_variety, rule_reward
from .rows import content_hash
from .scores import Reward
from .template import BoundTemplate
from .training import batches_of, train

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

CHECKPOINT_EVERY = 20
"""Steps; half a minute to a minute of the default preset, whose checkpoint takes about a second."""

PACKAGES = ("torch", "transformers", "trl", "datasets", "evaluate", "accelerate", "peft")


class Run:
    """The stages of one preset. Each loads what it left in the folder before, or makes it.

    | stage | leaves |
    | --- | --- |
    | `queries("train")`, `queries("test")` | `prompts/<split>/` (Arrow), `prompts/report.json`, and
      `prompts/data.json` (hashes of the data) |
    | `train()` | `policy/` (as transformers saves it), `stats.jsonl` (a line per step); until it is
      finished `checkpoints/` |
    | `compare()` | `comparison.csv` |
    | `perplexity()` | `perplexity.json` |
    | all of them | their headline numbers in `results.json` |
    """

    def __init__(self, preset: Preset, folder: str | Path | None = None) -> None:
        """The folder is `<preset>` under RLHF_RUNS, or under the project's `runs`."""
        # Jupyter starts a notebook's kernel in the notebook's folder.
        base = "../runs" if Path.cwd().name == "notebooks" else "runs"
        self.preset = preset
        self.folder = Path(folder or Path(os.environ.get("RLHF_RUNS", base)) / preset.name)
        self.device = default_device()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise TutorialError(
                f"cannot make the run's folder {str(self.folder)!r} ({reason(error)}): give "
                "another with --output or RLHF_RUNS"
            ) from error
        # Stages load what earlier ones left, so a folder belongs to one set of settings.
        settings = hashlib.sha256(repr(preset).encode()).hexdigest()
        known_settings = self.folder / "settings.sha256"
        with main_process_first():
            if known_settings.exists() and known_settings.read_text(encoding="utf-8") != settings:
                raise TutorialError(
                    f"{self.folder} holds a run of {preset.name!r} with other settings: "
                    "delete it, or set RLHF_RUNS to another folder"
                )
            known_settings.write_text(settings, encoding="utf-8")

    # What the preset names -----------------------------------------------------------------------

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        return load_tokenizer(self._policy_folder())

    def load_template(self) -> BoundTemplate:
        """The preset's template with the policy's tokenizer."""
        return self.preset.template.bind(self.load_tokenizer())

    @property
    def temperature(self) -> float:
        """That of the policy: it answers with softmax(z / temperature), trained or not."""
        return float(self.preset.ppo.get("temperature", 1.0))

    def load_policy(self, lora_rank: int | None = None) -> AutoModelForCausalLMWithValueHead:
        """The policy before training, with an adapter of that rank to be trained if there is one.

        The adapter changes nothing yet.
        """
        return AutoModelForCausalLMWithValueHead.from_pretrained(
            self._policy_folder(), peft_config=all_linear(lora_rank)
        )

    def load_reward(self) -> Reward:
        """The judge that PPO maximises."""
        return _load_judge(self.preset.reward_model, self.preset.reward_adapter, rule_reward)

    def load_second_judge(self) -> Reward:
        """A judge that no policy is trained on: it only evaluates."""
        return _load_judge(self.preset.second_judge, self.preset.second_adapter, rule_of_variety)

    def preferences(self, split: str) -> Dataset:
        """The preference dialogues of a split, "train" or "test"."""
        return load_preferences(self.preset.data, split, self.preset.data_dir)

    # Stage 1: prompts ----------------------------------------------------------------------------

    def queries(self, split: str = "train") -> Dataset:
        """The queries of a split; training queries are limited to the preset's number.

        Raises:
            TutorialError: if the folder has queries of data that have changed since.
        """
        folder, source = self.folder / "prompts" / split, self.preset.data
        data = content_hash(source, split, self.preset.data_dir)
        if not folder.exists():
            config = self._policy_config()
            queries, report = prepare_queries(
                self.preferences(split),
                self.load_template(),
                limit=self.preset.prompts if split == "train" else None,
                max_new_tokens=self.preset.max_new_tokens,
                context_length=context_length(config),
            )
            self._update_json("prompts/report.json", {split: vars(report)})
            self._update_json("prompts/data.json", {split: data})
            with _made_whole(folder) as partial:
                queries.save_to_disk(str(partial))
        elif self._read_json("prompts/data.json").get(split, data) != data:
            raise TutorialError(
                f"the data in {resolve(source)} have changed since {self.folder} was begun with "
                f"them, and its {split} prompts are the old ones: set RLHF_RUNS to another folder, "
                "or delete this one"
            )
        return load_queries(folder)

    def chosen_replies(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The training split's chosen replies, for PPO-ptx: token ids of dialogue and reply.

        A reply ends with the token that ends an answer; it is cut to 64 tokens, and so is the
        dialogue before it, from the front.
        """
        template, replies = self.load_template(), []
        end = template.eos_token_ids[:1]
        for text in dialogues_of(self.preferences("train")):
            if isinstance(text, str) and (parts := last_reply(text)) is not None:
                turns, reply = parts
                ids = template.tokenizer(reply, add_special_tokens=False)["input_ids"] + end
                context = template.encode(turns)[-64:]
                replies.append((torch.tensor(context), torch.tensor(ids[:64])))
        return replies

    # Stage 2: training ---------------------------------------------------------------------------

    def make_trainer(
        self,
        model: AutoModelForCausalLMWithValueHead | None = None,
        *,
        steps: int | None = None,
        **ppo: Any,
    ) -> PPOTrainer:
        """The trainer of the preset: policy, reference, optimizer, queries, precision.

        Args:
            steps: over which learning rates decay, if they do; by default the preset's epochs.
            ppo: fields of `PPOConfig` that go before the preset's.
        """
        preset = self.preset
        with main_process_first():
            queries = self.queries()
            if model is None:
                model = self.load_policy(preset.lora_rank)
                if preset.value_head_start is not None:
                    model.start_values_at(preset.value_head_start)
        set_training_attention(model.pretrained_model, self.device)
        ref_model = create_reference_model(model, preset.num_shared_layers)
        frozen = model.is_peft_model or preset.num_shared_layers is not None
        bf16 = trains_in_bf16(self.device, frozen)
        defaults = {
            "model_name": preset.name,
            "accelerator_kwargs": {"mixed_precision": "bf16" if bf16 else "no"},
        }
        config = PPOConfig(**{**defaults, **preset.ppo, **ppo})
        if config.temperature != self.temperature:
            raise TutorialError(
                f"this run's policy has temperature {self.temperature}, and all that looks at it "
                f"samples so: give a preset with temperature {config.temperature} instead"
            )
        body = [p for p in model.pretrained_model.parameters() if p.requires_grad]
        head_lr = preset.value_head_learning_rate or config.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": body},
            {"params": list(model.v_head.parameters()), "lr": head_lr},
        ]
        optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=True)
        trainer = PPOTrainer(
            config,
            model,
            ref_model,
            self.load_tokenizer(),
            queries,
            optimizer=optimizer,
            ptx_dataset=self.chosen_replies() if config.ptx_coef else (),
        )
        if preset.learning_rate_decays:
            steps = steps or preset.epochs * len(batches_of(trainer))
            trainer.lr_scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        return trainer

    def train(
        self, trainer: PPOTrainer | None = None, reward: Reward | None = None
    ) -> Iterator[dict[str, Any]]:
        """Train the policy, yielding the stats of each step; then save it.

        Every `CHECKPOINT_EVERY` steps, and when it is interrupted, a checkpoint is left in
        `checkpoints/`. Started again, the same run yields the stats of the steps that were done,
        and goes on with the next.

        What a finished training left in the folder is replaced, and what was measured on its policy
        is deleted. `stats.jsonl` is complete, and `policy/` is there, once the iterator is used up.

        Raises:
            CheckpointError: if the checkpoints in the folder are damaged, or of other settings.
            TutorialError: if the trainer has taken steps and the folder has no checkpoint of them.
        """
        trainer = trainer or self.make_trainer()
        with main_process_first():
            reward = reward or self.load_reward()
        checkpoints = self.folder / "checkpoints"
        if not trainer.resume(checkpoints) and trainer.history:
            raise TutorialError(
                f"this trainer has taken {len(trainer.history)} steps, and {self.folder} has no "
                "checkpoint to put it back to: make a new one with run.make_trainer()"
            )
        main = trainer.accelerator.is_main_process
        if main:
            self._delete_results()
        steps = train(
            trainer,
            reward,
            self.preset.template,
            epochs=self.preset.epochs,
            max_new_tokens=self.preset.max_new_tokens,
        )
        alone = trainer.accelerator.num_processes == 1
        with (
            StepLog(self.folder / "stats.jsonl" if main else Path(os.devnull), trainer) as log,
            Interruption(
                lambda: trainer.save_checkpoint(checkpoints),
                None if alone else partial(any_process, trainer.accelerator),
            ) as interruption,
        ):
            yield from list(trainer.history)
            yield from interruption.between(with_checkpoints(log.add(steps), trainer, checkpoints))
        if main:
            self._leave_policy(trainer)
            self._delete_checkpoints()
        trainer.accelerator.wait_for_everyone()

    def _delete_results(self) -> None:
        """What a finished training left, and what was measured on its policy."""
        for name in ("comparison.csv", "perplexity.json", "results.json"):
            (self.folder / name).unlink(missing_ok=True)
        for name in ("policy", "checkpoints.old"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _leave_policy(self, trainer: PPOTrainer) -> None:
        """The trained policy, and the training in numbers."""
        with _made_whole(self.folder / "policy") as folder:
            trainer.save_pretrained(folder, merge=True)  # ordinary, whatever was trained
        history = trainer.history
        self.record(
            training={
                "steps": len(history),
                "prompts": len(batches_of(trainer).dataset),
                "epochs": self.preset.epochs,
                "mean_score_first_10_batches": _mean(history[:10], "ppo/mean_scores"),
                "mean_score_last_10_batches": _mean(history[-10:], "ppo/mean_scores"),
                "kl_last_10_batches": _mean(history[-10:], "objective/kl"),
                "seconds": round(history[-1]["time/elapsed"], 1),
                "seed": trainer.config.seed,
                "precision": trainer.accelerator.mixed_precision,
                "temperature": trainer.config.temperature,
                "system_message": self.preset.template.system,
                "max_new_tokens": self.preset.max_new_tokens,
                **({"lora_rank": self.preset.lora_rank} if trainer.is_peft_model else {}),
            }
        )

    def _delete_checkpoints(self) -> None:
        """All of them or none, should this be stopped as well."""
        checkpoints = self.folder / "checkpoints"
        if checkpoints.exists():  # a short run has none
            done = checkpoints.rename(self.folder / "checkpoints.old")
            shutil.rmtree(done, ignore_errors=True)

    def trained_policy(self, progress: Callable[..., Any] | None = None) -> Path:
        """The folder of the trained policy, trained now if it is not there."""
        folder = self.folder / "policy"
        if not (folder / "config.json").exists():
            from tqdm import tqdm

            trainer = self.make_trainer()
            steps = self.preset.epochs * len(batches_of(trainer))
            for _ in (progress or tqdm)(self.train(trainer), total=steps, desc="PPO"):
                pass
        return folder

    def stats(self) -> list[dict[str, float]]:
        """The training log, one dict per step."""
        log = self.folder / "stats.jsonl"
        if not log.exists():
            raise TutorialError(f"{log} does not exist: train the policy first (notebook 05)")
        try:
            return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise TutorialError(
                f"{log} ends in the middle of a line: the training was stopped there, go on with it"
            ) from error

    # Stage 3: before and after -------------------------------------------------------------------

    def answers(
        self, policy: AutoModelForCausalLMWithValueHead, input_ids: list[torch.Tensor], seed: int
    ) -> list[str]:
        """Texts with which a policy answers queries, sampled by the run's settings.

        Args:
            input_ids: the queries in tokens, as `queries` has them.
        """
        from .evaluation.sampling import sample_answers

        return sample_answers(
            policy.to(self.device),
            self.load_template(),
            input_ids,
            max_new_tokens=self.preset.max_new_tokens,
            temperature=self.temperature,
            seed=seed,
        ).texts

    def compare(self) -> pd.DataFrame:
        """The same held-out prompts answered before and after, with both judges' scores."""
        from .evaluation.compare import compare, load_table, save_table, summarise
        from .evaluation.measures import text_measures

        path = self.folder / "comparison.csv"
        if path.exists():
            return load_table(path)

        trained = self.trained_policy()
        start = time.perf_counter()
        queries = self.queries("test")
        queries = queries.select(range(min(self.preset.comparison_prompts, len(queries))))

        input_ids, seed = queries["input_ids"][:], self.preset.ppo.get("seed", 0)
        before = self.answers(self.load_policy(), input_ids, seed=seed)
        after = self.answers(
            AutoModelForCausalLMWithValueHead.from_pretrained(trained), input_ids, seed=seed
        )
        table = compare(
            queries["query"][:], before, after, self.load_reward(), self.load_second_judge()
        )
        seconds = round(time.perf_counter() - start, 1)
        texts = table["query"].tolist()
        measures = {
            when: text_measures(texts, table[f"response_{when}"].tolist())
            for when in ("before", "after")
        }
        second = summarise(table, "second")
        self.record(
            comparison={
                **summarise(table), "second": second, "measures": measures, "seconds": seconds
            }
        )  # fmt: skip
        save_table(table, path)  # last, because this file says that the stage is done
        return table

    # Stage 4: perplexity -------------------------------------------------------------------------

    def perplexity(self) -> dict[str, Any]:
        """Perplexity before and after, on whole dialogues and on the last reply given the rest.

        Both are at temperature 1, as perplexity is defined. Of a policy with another temperature
        there is a third, "last_reply_as_sampled": the last reply's, at the policy's.
        """
        path = self.folder / "perplexity.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        from .evaluation.perplexity import Perplexity

        trained = self.trained_policy()
        start = time.perf_counter()
        rows = dialogues_of(self.preferences("test"))[: self.preset.perplexity_texts]
        texts = [text for text in rows if isinstance(text, str) and text.strip()]
        template = self.load_template()
        pairs = [pair for text in texts if (pair := last_reply(text)) is not None]
        replies = {
            "predictions": [reply for _, reply in pairs],
            "contexts": [template.encode(turns) for turns, _ in pairs],
        }
        metric = Perplexity(keep_in_memory=True)
        result: dict[str, Any] = {}
        for name, model in (
            ("before", self.load_policy()),
            ("after", AutoModelForCausalLMWithValueHead.from_pretrained(trained)),
        ):
            with_model = {
                "model": model.pretrained_model.to(self.device),
                "tokenizer": template.tokenizer,
            }
            result[name] = {
                "whole_text": metric.compute(predictions=texts, **with_model),
                "last_reply": metric.compute(**replies, **with_model),
            }
            if self.temperature != 1:
                result[name]["last_reply_as_sampled"] = metric.compute(
                    **replies, **with_model, temperature=self.temperature
                )
        result["seconds"] = round(time.perf_counter() - start, 1)
        # results.json holds the averages; perplexity.json also each text's value.
        keys = ("mean_perplexity", "pooled_perplexity", "truncated")
        averages = {
            name: {kind: {key: v[key] for key in keys} for kind, v in result[name].items()}
            for name in ("before", "after")
        }
        self.record(perplexity={**averages, "seconds": result["seconds"]})
        path.write_text(json.dumps(result), encoding="utf-8")  # last, as above
        return result

    # Headline numbers ----------------------------------------------------------------------------

    def record(self, **numbers: Any) -> None:
        """Add numbers to `results.json`, with the versions and the machine they come from."""
        self._update_json(
            "results.json",
            {
                "preset": self.preset.name,
                **numbers,
                "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
                "python": platform.python_version(),
                "device": str(self.device),
                "processor": processor_name(),
            },
        )

    def results(self) -> dict[str, Any]:
        """What `results.json` holds so far."""
        return self._read_json("results.json")

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _update_json(self, name: str, update: dict[str, Any]) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {**self._read_json(name), **update}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _policy_folder(self) -> Path:
        if self.preset.policy is not None:
            return resolve(self.preset.policy)
        folder = self.folder / "initial_policy"
        if not folder.exists():
            from .tiny import make_tiny_policy

            preferences = self.preferences("train")
            answered = "chosen" in preferences.column_names
            texts = dialogues_of(preferences, "chosen" if answered else "prompt")
            with _made_whole(folder) as partial:
                make_tiny_policy(partial, [text for text in texts if isinstance(text, str)])
        return folder

    def _policy_config(self) -> Any:
        from transformers import AutoConfig

        folder = self._policy_folder()
        with loading(folder):
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)


class StepLog:
    """A training's log, a line of JSON per step, with the seconds since its start.

    Of a training that was taken up it begins with the steps that were done, and their seconds.
    """

    def __init__(self, path: Path, trainer: PPOTrainer) -> None:
        self.path, self.trainer = path, trainer

    def __enter__(self) -> StepLog:
        history = self.trainer.history
        self._start = time.perf_counter() - (history[-1]["time/elapsed"] if history else 0)
        self._file = self.path.open("w", encoding="utf-8")
        self._file.writelines(json.dumps(numbers) + "\n" for numbers in history)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, steps: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The steps, each one written down as it comes by."""
        for stats in steps:
            elapsed = time.perf_counter() - self._start
            self.trainer.annotate(stats, **{"time/elapsed": elapsed})
            self._file.write(json.dumps(self.trainer.history[-1]) + "\n")
            self._file.flush()
            yield stats


def with_checkpoints(
    steps: Iterator[dict[str, Any]], trainer: PPOTrainer, folder: Path
) -> Iterator[dict[str, Any]]:
    """The steps; after every `CHECKPOINT_EVERY` a checkpoint is left in the folder."""
    for stats in steps:
        if len(trainer.history) % CHECKPOINT_EVERY == 0:
            trainer.save_checkpoint(folder)
        yield stats


def _load_judge(model: Source | None, adapter: Source | None, rule: Reward) -> Reward:
    """A reward model, with an adapter or without, or the rule where there is none."""
    if model is None:
        return rule
    return load_judge(resolve(model), None if adapter is None else resolve(adapter))


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Another name for the folder while it is filled: what stops half-way leaves no folder."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    partial.rename(folder)


def _mean(history: list[dict[str, float]], key: str) -> float:
    return sum(step[key] for step in history) / len(history)
