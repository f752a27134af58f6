"""A judge: a reward model that scores answers, loaded with or without a LoRA adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..assets import as_source, resolve
from ..device import device_or_default, supports_bf16
from ..errors import ModelError, RewardError, loading
from ..quiet import quiet_transformers
from ..randomness import preserved_random_state
from ..scores import check_one_each, checked_scores
from ..template import CHAT


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
        # transformers takes a decoder's score at the last token that is not padding.
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
        check_one_each(queries, responses)
        if not all(isinstance(text, str) for text in queries + responses):
            raise RewardError("queries and responses are lists of strings: decode tokens first")
        if not queries:
            return []
        encoded = encode(self.tokenizer, queries, responses, self.max_length)
        rows = [{name: encoded[name][i] for name in encoded} for i in range(len(queries))]
        # Sorted by length, so that the rows of a batch need little padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        scores = [0.0] * len(rows)
        # One autocast block around all batches: within it each weight is cast only once.
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
    chat = CHAT.bind(tokenizer)
    opened = (chat.render([("Human", query)]) for query in queries)
    texts = [opening + response for opening, response in zip(opened, responses, strict=True)]
    return tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)


def load_classifier(folder: Path) -> tuple[Any, list[str]]:
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
    model, untrained = load_classifier(folder)
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
    model, untrained = load_classifier(base)
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
