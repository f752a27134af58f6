"""How a judge is trained: Bradley-Terry on preference pairs, in full or by low-rank adapters."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..assets import Hub, Source, as_source, resolve
from ..data import load_preferences, preference_pairs
from ..device import device_or_default, supports_bf16
from ..dialogues import opens_with_a_turn
from ..errors import DataError, check_whole, loading
from ..quiet import quiet_transformers
from ..randomness import preserved_random_state
from .judge import RewardModel, encode, load_classifier

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

Pair = dict[str, str]  # {"prompt", "chosen", "rejected"}


def _as_pairs(pairs: Sequence[Any] | Source | str | Any, **download: Any) -> Sequence[Pair]:
    """Rows of any form as pairs; those that are so already as they stand."""
    from datasets import Dataset

    if isinstance(pairs, (list, tuple, Dataset)):
        rows = list(pairs)
        if all(_is_pair(row) for row in rows):
            _check_pairs(rows)
            return rows
    pairs, counts = preference_pairs(load_preferences(pairs, **download))
    print(f"preferences: {counts}")
    return pairs


def _is_pair(row: Any) -> bool:
    """Whether the row has a prompt, and in a pair's places nothing but text that is no dialogue."""
    sides = [row.get(name) for name in ("prompt", "chosen", "rejected")]
    texts = [side for side in sides if isinstance(side, str)]
    plain = len(texts) == sum(side is not None for side in sides)
    return "prompt" in row and plain and not any(opens_with_a_turn(text) for text in texts)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    if not len(pairs):
        raise DataError("there are no preference pairs: give at least one")
    for i, pair in enumerate(pairs):
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(pair.get(name), str):
                raise DataError(f"pair {i} has no text as its {name!r}: give the three texts")


def train_reward_model(
    pairs: Sequence[Mapping[str, Any]] | Dataset | DatasetDict | Source | str,
    base: str | Path,
    *,
    output: str | Path | None = None,
    lora: bool = True,
    rank: int = 8,
    epochs: int = 1,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    max_tokens: int = 128,
    seed: int = 0,
    device: torch.device | str | None = None,
    bf16: bool | None = None,
    log: Callable[[int, dict[str, float]], None] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> RewardModel:
    """Train a Bradley-Terry reward model on preference pairs with `trl.RewardTrainer`.

    The loss is -log sigmoid(r(x, chosen) - r(x, rejected)): Bradley & Terry (1952) as used by
    Christiano et al. (2017) and in eq. 1 of Ouyang et al. (2022); a small penalty on the sum of the
    two scores keeps them around zero, where the loss alone leaves their level open.

    Args:
        pairs: dictionaries of plain strings `prompt`, `chosen`, `rejected`, or preferences of any
            form that `data.load_preferences` takes, of which the split "train" is read.
        base: model to start from, a folder or hub id; it gets a fresh head with one logit.
        output: folder to leave the trained adapter (or, with `lora=False`, checkpoint) in.
        lora: train low-rank adapters (Hu et al. 2021) of this `rank`, or else every weight.
        max_tokens: what prompt and response together are longer is cut, see `judge.encode`.
        log: called as `log(step, {"loss", "accuracy", ...})` every ten optimiser steps.
        revision, token, cache_dir: for the download of `base` from the Hub; the latter two also for
            that of the pairs.

    Raises DataError when there are no pairs. The caller's random state is left as it was.
    """
    from transformers import AutoTokenizer, PrinterCallback
    from trl import RewardConfig, RewardTrainer

    pairs = _as_pairs(pairs, token=token, cache_dir=cache_dir)
    device = device_or_default(device)
    source = as_source(base, revision or "main")
    base = resolve(source, token=token, cache_dir=cache_dir)
    check_whole(base)
    # TRL's collator makes no token_type_ids. Saved with the model, this makes the judge leave them
    # out as well when it scores.
    inputs = {"model_input_names": ["input_ids", "attention_mask"]}
    with loading(base):
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, **inputs)
    rows = _training_rows(pairs, tokenizer, epochs, batch_size, max_tokens, seed)
    bf16 = supports_bf16(device) if bf16 is None else bf16
    with (
        preserved_random_state(),
        quiet_transformers(),
        tempfile.TemporaryDirectory() as scratch,
    ):
        folder = Path(output) if output is not None else Path(scratch, "trained")
        torch.manual_seed(seed)
        with loading(base):
            model, untrained = load_classifier(base)
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
            peft_config=_lora_config(rank, untrained) if lora else None,
            callbacks=[_log_callback(log)] if log else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # Load what was saved: mixed precision has left the trained module with a patched forward.
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
    seed: int,
) -> Any:
    """Token ids of every pair in every epoch, in batches of like length, the batches shuffled."""
    from datasets import Dataset

    rng = random.Random(seed)
    prompts = [pair["prompt"] for pair in pairs]
    ids = [
        encode(tokenizer, prompts, [pair[side] for pair in pairs], max_tokens)["input_ids"]
        for side in ("chosen", "rejected")
    ]
    epoch = [{"chosen_ids": c, "rejected_ids": r} for c, r in zip(*ids, strict=True)]
    rows: list[dict[str, list[int]]] = []
    for _ in range(epochs):
        rng.shuffle(epoch)
        # Sorted within 16 batches at a time only: in each epoch other pairs share a batch.
        batches = []
        for start in range(0, len(epoch), 16 * batch_size):
            group = sorted(epoch[start : start + 16 * batch_size], key=_longer_side)
            batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
        rng.shuffle(batches)
        # The short batch last: the loader cuts the rows into batches by number, and a short one in
        # the middle would shift all rows after it into other batches.
        batches.sort(key=lambda batch: len(batch) < batch_size)
        rows += [row for batch in batches for row in batch]
    return Dataset.from_list(rows)


def _longer_side(row: dict[str, list[int]]) -> int:
    return max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def _lora_config(rank: int, untrained: list[str]) -> Any:
    """LoRA on every linear layer; what has no trained weights yet, as the head, trains in full."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
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
