"""Rewards: what scores a response, from a plain rule to a reward model, and how one is trained."""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .assets import Hub, as_source, loading, resolve
from .data import CHAT
from .device import device_or_default, supports_bf16
from .errors import DataError, ModelError, RewardError

Pair = dict[str, str]  # {"prompt", "chosen", "rejected"}


class Reward(Protocol):
    """A reward is any callable that gives one finite float per (query, response)."""

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]: ...


def checked_scores(scores: Any, count: int) -> list[float]:
    """What a reward returned for `count` responses, as floats.

    Numbers may also be tensors or arrays of one element each.

    Raises:
        RewardError: unless there are as many finite numbers as responses.
    """
    wanted = "it must give a list of numbers, one per response"
    try:
        if isinstance(scores, (str, bytes, dict, set)):
            raise TypeError
        values = list(scores)
    except TypeError as error:
        raise RewardError(f"the reward gave a {type(scores).__name__}: {wanted}") from error
    if len(values) != count:
        raise RewardError(
            f"the reward gave {len(values)} scores for {count} responses: it must give one per "
            "response"
        )
    return [_checked_score(value, i) for i, value in enumerate(values)]


def _checked_score(value: Any, i: int) -> float:
    shape = getattr(value, "shape", ())
    if math.prod(shape) == 1 and hasattr(value, "item"):  # of torch or NumPy
        value = value.item()
    if not isinstance(value, numbers.Real):
        what = f"of shape {tuple(shape)}" if shape else f"a {type(value).__name__}"
        raise RewardError(f"the score of response {i} is {what}: it must be one number")
    try:
        score = float(value)
    except OverflowError:  # an integer of hundreds of digits
        score = math.inf
    if not math.isfinite(score):
        raise RewardError(f"the score of response {i} is {score}: the reward must be finite")
    return score


class RewardModel:
    """A sequence classifier with one logit, read as the reward of a response to a query.

    The pair goes through the model's own tokenizer, see `encode`, cut to the model's maximum
    length. What the model is fed besides `input_ids` is what its tokenizer lists in
    `model_input_names`: a checkpoint trained without `token_type_ids` says so there.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: torch.device | str | None = None,
        batch_size: int = 32,
        bf16: bool | None = None,
    ) -> None:
        """Take a loaded `transformers` classifier; `bf16=None` uses bfloat16 where supported.

        Raises ModelError unless the head has exactly one logit.
        """
        if model.config.num_labels != 1:
            raise ModelError(
                f"{model.config._name_or_path or 'the reward model'} has {model.config.num_labels} "
                "logits; a reward model has exactly one: load one trained with num_labels=1"
            )
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ModelError("the reward model's tokenizer has no padding token: set one")
            tokenizer.pad_token = tokenizer.eos_token
        embeddings = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > embeddings:
            raise ModelError(
                f"the reward model's tokenizer has {len(tokenizer)} tokens, but the model knows "
                f"{embeddings}: load the tokenizer that it was trained with"
            )
        # A decoder reads its score at the last token that is not this one.
        model.config.pad_token_id = tokenizer.pad_token_id
        self.device = device_or_default(device)
        self.model = model.to(self.device).eval()
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.bf16 = supports_bf16(self.device) if bf16 is None else bf16
        self.max_length = _max_length(model, tokenizer)
        precision = "bfloat16 autocast" if self.bf16 else str(model.dtype).removeprefix("torch.")
        print(f"reward model: {type(model).__name__} on {self.device}, {precision}")

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        adapter: str | Path | None = None,
        revision: str | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 32,
        bf16: bool | None = None,
    ) -> RewardModel:
        """Load a checkpoint, or a base encoder with a PEFT LoRA `adapter` folder merged into it.

        With an adapter the tokenizer's settings in its `tokenizer_config.json` go before the
        base's. The caller's random state is left as it was.

        Raises:
            AssetError: if the checkpoint cannot be found. ModelError: when it cannot be loaded, the
                head has several logits, or neither checkpoint nor adapter holds a trained head.
        """
        from transformers import AutoTokenizer

        folder = resolve(as_source(folder_or_id, revision or "main"))
        with loading(folder), preserved_random_state(), quiet_transformers():
            overrides = {} if adapter is None else _tokenizer_overrides(Path(adapter))
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **overrides)
            if adapter is None:
                model = _load_trained(folder)
            else:
                model = _load_merged(folder, Path(adapter))
        return cls(model, tokenizer, device, batch_size, bf16)

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        """Score each response to the query at the same place, in the caller's order.

        Raises RewardError for lists of unequal length, anything but strings, or a score that is
        not finite.
        """
        queries, responses = list(queries), list(responses)
        _check_one_each(queries, responses)
        if not all(isinstance(text, str) for text in queries + responses):
            raise RewardError("queries and responses are lists of strings: decode tokens first")
        if not queries:
            return []
        encoded = encode(self.tokenizer, queries, responses, self.max_length)
        rows = [{name: encoded[name][i] for name in encoded} for i in range(len(queries))]
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        # Entered once for all batches, so that each weight is cast once.
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            for start in range(0, len(order), self.batch_size):
                indices = order[start : start + self.batch_size]
                batch = self.tokenizer.pad([rows[i] for i in indices], return_tensors="pt")
                logits = self.model(**batch.to(self.device)).logits
                for i, score in zip(indices, logits[:, 0].float().tolist(), strict=True):
                    scores[i] = score
        return checked_scores(scores, len(responses))


def encode(
    tokenizer: Any, queries: list[str], responses: list[str], max_length: int
) -> dict[str, list[list[int]]]:
    """What a judge reads of each query and response, as lists by the names of its inputs.

    A tokenizer with a chat template is that of a chat model: the query becomes the user's turn and
    the response the assistant's, which ends with its last token. Any other takes a text pair. What
    is longer than `max_length` tokens is cut.
    """
    if tokenizer.chat_template is None:
        return tokenizer(queries, responses, truncation=True, max_length=max_length)
    opened = (CHAT.render(tokenizer, [("Human", query)]) for query in queries)
    texts = [opening + response for opening, response in zip(opened, responses, strict=True)]
    return tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)


def rule_reward(queries: list[str], responses: list[str]) -> list[float]:
    """A reward in [-1, 1] that needs no weights: share of letters and spaces, less repetition.

    The share of characters that are ASCII letters or spaces, minus the share of words that already
    stood earlier in the response. An empty response scores -1.
    """
    _check_one_each(queries, responses)
    return [_rule_score(response) for response in responses]


def _check_one_each(queries: list[str], responses: list[str]) -> None:
    if len(queries) != len(responses):
        raise RewardError(
            f"{len(queries)} queries but {len(responses)} responses: give one query a response"
        )


def _rule_score(response: str) -> float:
    words = response.lower().split()
    if not words:
        return -1.0
    plain = sum(c == " " or (c.isascii() and c.isalpha()) for c in response) / len(response)
    return plain - (1 - len(set(words)) / len(words))


def rule_of_variety(queries: list[str], responses: list[str]) -> list[float]:
    """The second judge where there are no weights: the number of different words, over ten."""
    _check_one_each(queries, responses)
    return [len(set(response.lower().split())) / 10 for response in responses]


def pairwise_accuracy(reward: Reward, pairs: Sequence[Pair]) -> float:
    """Share of pairs in which `reward` puts the chosen response above the rejected one."""
    _check_pairs(pairs)
    prompts = [pair["prompt"] for pair in pairs]
    responses = [pair["chosen"] for pair in pairs] + [pair["rejected"] for pair in pairs]
    scores = checked_scores(reward(prompts + prompts, responses), len(responses))
    wins = sum(c > r for c, r in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))
    return wins / len(pairs)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    if not len(pairs):
        raise DataError("there are no preference pairs: give at least one")
    for i, pair in enumerate(pairs):
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(pair.get(name), str):
                raise DataError(f"pair {i} has no text as its {name!r}: give the three texts")


def accuracy_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval for `correct` successes in `n` trials (Wilson 1927)."""
    if not 0 <= correct <= n or n == 0:
        raise DataError(f"{correct} correct of {n}: need 0 <= correct <= n and n > 0")
    z = 1.959963984540054  # the normal distribution's 97.5% quantile
    centre = (correct + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(correct * (n - correct) / n + z**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def cut_pair(pair: Pair, rng: random.Random, shortest: int = 8, longest: int = 25) -> Pair:
    """Both responses cut to the same number of words, drawn evenly from shortest..longest.

    PPO's answers stop after a fixed number of tokens, often in mid-sentence. A judge that has seen
    only whole answers marks them down for that.
    """
    words = rng.randint(shortest, longest)
    return pair | {side: cut_words(pair[side], words) for side in ("chosen", "rejected")}


def cut_words(text: str, words: int) -> str:
    """The first `words` words of `text`, its spacing kept."""
    match = re.match(rf"\s*(?:\S+\s+){{0,{words - 1}}}\S+", text)
    return match.group() if match else ""


def train_reward_model(
    pairs: Sequence[Pair],
    base: str | Path,
    *,
    output: str | Path | None = None,
    lora: bool = True,
    rank: int = 8,
    layers: Sequence[int] | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_tokens: int = 128,
    cut_share: float = 0.6,
    seed: int = 0,
    device: torch.device | str | None = None,
    bf16: bool | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
) -> RewardModel:
    """Train a Bradley-Terry reward model on preference pairs with `trl.RewardTrainer`.

    The loss is -log sigmoid(r(x, chosen) - r(x, rejected)): Bradley & Terry (1952) as used by
    Christiano et al. (2017) and in eq. 1 of Ouyang et al. (2022); a small penalty on the sum of the
    two scores keeps them around zero, where the loss alone leaves their level open.

    Args:
        pairs: dictionaries of plain strings `prompt`, `chosen`, `rejected`.
        base: model to start from, a folder or hub id; it gets a fresh head with one logit.
        output: folder to leave the trained adapter (or, with `lora=False`, checkpoint) in.
        lora: train low-rank adapters (Hu et al. 2021) of this `rank`, or else every weight.
        layers: numbers of the layers that get adapters; all by default.
        max_tokens: prompt and response together are cut to this many tokens.
        cut_share: share of the pairs seen with both responses cut short, see `cut_pair`.
        log: called as `log(step, {"loss", "accuracy", ...})` every ten optimiser steps.

    Raises DataError when there are no pairs. The caller's random state is left as it was.
    """
    from transformers import AutoTokenizer, PrinterCallback
    from trl import RewardConfig, RewardTrainer

    _check_pairs(pairs)
    device = device_or_default(device)
    source = as_source(base)
    base = resolve(source)
    # trl's collator makes no token_type_ids; saved with the model, this tells the scorer so.
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    with loading(base):
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, **inputs)
    rows = _training_rows(pairs, tokenizer, epochs, batch_size, max_tokens, cut_share, seed)
    bf16 = supports_bf16(device) if bf16 is None else bf16
    with (
        preserved_random_state(),
        quiet_transformers(),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = Path(output) if output is not None else Path(scratch, "trained")
        torch.manual_seed(seed)
        with loading(base):
            model, untrained = _load_classifier(base)
        trainer = RewardTrainer(
            model=model,
            args=RewardConfig(
                output_dir=scratch,
                per_device_train_batch_size=batch_size,
                num_train_epochs=1,  # the rows hold every epoch, in the order to be seen
                train_sampling_strategy="sequential",
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,  # a share of all steps
                center_rewards_coefficient=0.01,
                max_length=None,
                use_cpu=device.type == "cpu",
                bf16=bf16,
                activation_checkpointing=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=device.type == "cuda",
                seed=seed,
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=_lora_config(model, rank, layers, untrained) if lora else None,
            callbacks=[_log_callback(log)] if log else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # Score with what was saved: mixed precision leaves the trained module's forward patched.
        trainer.model.save_pretrained(folder)
        if lora:
            Path(folder, "tokenizer_config.json").write_text(json.dumps(inputs, indent=2) + "\n")
            name = source.repo_id if isinstance(source, Hub) else base.resolve().name
            _name_base(folder, base, name)
            return RewardModel.from_pretrained(base, folder, device=device, bf16=bf16)
        tokenizer.save_pretrained(folder)
        return RewardModel.from_pretrained(folder, device=device, bf16=bf16)


def _training_rows(
    pairs: Sequence[Pair],
    tokenizer: Any,
    epochs: int,
    batch_size: int,
    max_tokens: int,
    cut_share: float,
    seed: int,
) -> Any:
    """Token ids of every pair in every epoch, in batches of like length, the batches shuffled."""
    from datasets import Dataset

    rng = random.Random(seed)
    rows: list[dict[str, list[int]]] = []
    for _ in range(epochs):
        seen = [cut_pair(pair, rng) if rng.random() < cut_share else pair for pair in pairs]
        prompts = [pair["prompt"] for pair in seen]
        ids = [
            encode(tokenizer, prompts, [pair[side] for pair in seen], max_tokens)["input_ids"]
            for side in ("chosen", "rejected")
        ]
        epoch = [{"chosen_ids": c, "rejected_ids": r} for c, r in zip(*ids, strict=True)]
        rng.shuffle(epoch)
        # Sorted only within 16 batches at a time, so that a batch's company changes by epoch.
        batches = []
        for start in range(0, len(epoch), 16 * batch_size):
            group = sorted(epoch[start : start + 16 * batch_size], key=_longer_side)
            batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        rng.shuffle(batches)
        # A batch short of rows would shift the rest of the epoch out of its grouping.
        batches.sort(key=lambda batch: len(batch) < batch_size)
        rows += [row for batch in batches for row in batch]
    return Dataset.from_list(rows)


def _longer_side(row: dict[str, list[int]]) -> int:
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _lora_config(model: Any, rank: int, layers: Sequence[int] | None, untrained: list[str]) -> Any:
    """LoRA on every linear layer of these `layers`, by default of all of them.

    Modules without trained weights, as a fresh head, train in full.
    """
    from peft import LoraConfig

    linear = {
        name.rpartition(".")[2]
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear" if layers is None else sorted(linear),
        layers_to_transform=None if layers is None else list(layers),
        modules_to_save=untrained or None,
    )


def _name_base(adapter: Path, base: Path, name: str) -> None:
    """Put the base's name where PEFT wrote its local path, which is nobody else's business."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = name
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    card = adapter / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8").replace(str(base), name)
        card.write_text(text, encoding="utf-8")


def _log_callback(log: Callable[[int, dict[str, float]], None]) -> Any:
    from transformers import TrainerCallback

    class LogCallback(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                log(state.global_step, {name: float(value) for name, value in logs.items()})

    return LogCallback()


def _load_classifier(folder: Path) -> tuple[Any, list[str]]:
    """A float32 classifier with one logit, and its modules the checkpoint has no weights for."""
    from transformers import AutoModelForSequenceClassification

    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder,
        num_labels=1,
        dtype=torch.float32,
        output_loading_info=True,
        # Left unset, transformers asks the reader whether to run a repository's own code.
        trust_remote_code=False,
    )
    return model, sorted({key.rpartition(".")[0] for key in info["missing_keys"]})


def _load_trained(folder: Path) -> Any:
    from transformers import AutoConfig

    logits = AutoConfig.from_pretrained(folder, trust_remote_code=False).num_labels
    if logits != 1:
        raise ModelError(
            f"{folder} has a head of {logits} logits (2 is also what a checkpoint without a "
            "head says): a reward model has exactly one; give an adapter or another checkpoint"
        )
    model, untrained = _load_classifier(folder)
    if untrained:
        raise ModelError(
            f"{folder} holds no weights for {', '.join(untrained)}: its scores would be "
            "random; give an adapter, or a checkpoint saved with its head"
        )
    return model


def _load_merged(base: Path, adapter: Path) -> Any:
    from peft import PeftConfig, PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json: give a PEFT adapter's folder")
    with loading(adapter):
        saved = PeftConfig.from_pretrained(adapter).modules_to_save or []
    model, untrained = _load_classifier(base)
    if not set(untrained) <= set(saved):
        raise ModelError(
            f"neither {base} nor the adapter {adapter} holds trained weights for "
            f"{', '.join(sorted(set(untrained) - set(saved)))}: train the adapter with them in "
            "modules_to_save"
        )
    with loading(adapter):
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _tokenizer_overrides(adapter: Path) -> dict[str, Any]:
    """What the adapter's own tokenizer settings say about the inputs it was trained with."""
    path = adapter / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: settings[name] for name in ("model_input_names",) if name in settings}


def _max_length(model: Any, tokenizer: Any) -> int:
    """The most tokens the model takes: the tokenizer's limit, but no more than its positions."""
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    return min(tokenizer.model_max_length, positions)


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Put Python's, NumPy's and torch's random states back afterwards."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence its load reports: they warn of a fresh head where the adapter brings the head."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # PEFT 0.21 calls what transformers 5 renamed.
            warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
