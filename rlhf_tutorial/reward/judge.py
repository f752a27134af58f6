"""A judge: a reward model that scores answers, loaded with or without a LoRA adapter."""

from __future__ import annotations

import json
import logging
import re
from bisect import bisect_left
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..assets import as_source, resolve
from ..device import device_or_default, supports_bf16
from ..dialogues import Turn, query_text, query_turns
from ..errors import ModelError, RewardError, check_whole, loading
from ..quiet import quiet_transformers
from ..randomness import preserved_random_state
from ..scores import check_one_each, checked_scores
from ..template import CHAT

logger = logging.getLogger(__name__)

Encoded = dict[str, list[list[int]]]
"""Rows of numbers by the names of a model's inputs."""


class RewardModel:
    """A sequence classifier with one logit, read as the reward of a response to a query.

    The pair goes through the model's own tokenizer, see `encode`, the query cut so that both fit
    the model's maximum length; batches are padded on a side where padding changes no score. What
    the model is fed besides `input_ids` is what its tokenizer lists in `model_input_names`: a
    checkpoint trained without `token_type_ids` says so there.
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
        self.padding_side = _harmless_padding(self.model, tokenizer, self.max_length)
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
        *,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> RewardModel:
        """Load a checkpoint, or a base encoder with a PEFT LoRA `adapter` merged into it.

        With an adapter the tokenizer's settings in its `tokenizer_config.json` go before the
        base's. The caller's random state is left as it was. `revision` (of the checkpoint), `token`
        and `cache_dir` are for the download from the Hub.

        Raises:
            AssetError: if the checkpoint cannot be found. ModelError: when it cannot be loaded, the
                head has several logits, or neither checkpoint nor adapter holds a trained head.
        """
        from transformers import AutoTokenizer

        download: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
        folder = resolve(as_source(folder_or_id, revision or "main"), **download)
        check_whole(folder, "give that as the checkpoint, and this folder as adapter=")
        if adapter is not None:
            adapter = resolve(as_source(adapter), **download)
        with loading(folder), preserved_random_state(), quiet_transformers():
            overrides = {} if adapter is None else _tokenizer_overrides(adapter)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **overrides)
            model = _load_trained(folder) if adapter is None else _load_merged(folder, adapter)
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
            for indices in self._batches(order, [len(row["input_ids"]) for row in rows]):
                batch = [rows[i] for i in indices]
                side = self.padding_side or "right"
                logits = _logits(self.model, self.tokenizer, batch, side)
                for i, score in zip(indices, logits.tolist(), strict=True):
                    scores[i] = score
        return checked_scores(scores, len(responses))

    def _batches(self, order: list[int], lengths: list[int]) -> list[list[int]]:
        """Neighbours in the order; of one length where padding would change their scores."""
        mixed = self.padding_side is not None
        groups = [order] if mixed else [list(g) for _, g in groupby(order, lengths.__getitem__)]
        size = self.batch_size
        return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def encode(tokenizer: Any, queries: list[str], responses: list[str], max_length: int) -> Encoded:
    """What a judge reads of each query and response, as lists by the names of its inputs.

    A tokenizer with a chat template is that of a chat model: the query becomes the user's turn (or
    its turns, see `dialogues.query_turns`) and the response the assistant's, which ends with its
    last token. Any other takes a text pair. A special token that a text spells out is read as text,
    see `template.BoundTemplate.plain`.

    Where both are longer than `max_length` tokens, the query loses its beginning: earlier turns
    first, then words. Only of an answer that is too long by itself a part is read, as the tokenizer
    cuts a pair; a line in the log tells so.
    """
    read = _read_pairs if tokenizer.chat_template is None else _read_chats
    plain = CHAT.bind(tokenizer).plain
    queries, responses = list(map(plain, queries)), list(map(plain, responses))
    encoded = read(tokenizer, queries, responses)
    in_part = 0
    for i, ids in enumerate(encoded["input_ids"]):
        if len(ids) > max_length:
            row = _fitting(read, tokenizer, queries[i], responses[i], max_length)
            in_part += row is None
            row = row or _cut(read, tokenizer, queries[i], responses[i], max_length)
            for name, values in row.items():
                encoded[name][i] = values[0]
    if in_part:
        logger.warning(
            "%d answers are longer than the judge's %d tokens: a part is read", in_part, max_length
        )
    return encoded


def _read_pairs(tokenizer: Any, queries: list[str], responses: list[str], **cut: Any) -> Encoded:
    return tokenizer(queries, responses, verbose=False, **cut)


def _read_chats(tokenizer: Any, queries: list[str], responses: list[str], **cut: Any) -> Encoded:
    chat = CHAT.bind(tokenizer)
    opened = (chat.render(query_turns(query)) for query in queries)
    texts = [opening + response for opening, response in zip(opened, responses, strict=True)]
    return tokenizer(texts, add_special_tokens=False, verbose=False, **cut)


def _fitting(
    read: Callable[..., Encoded], tokenizer: Any, query: str, response: str, max_length: int
) -> Encoded | None:
    """A row with as much of the query as there is room for; None if the answer alone has none."""

    def row(query: str) -> Encoded:
        return read(tokenizer, [query], [response])

    def fits(query: str) -> bool:
        return len(row(query)["input_ids"][0]) <= max_length

    return row(_shortened(query, fits)) if fits("") else None


def _cut(
    read: Callable[..., Encoded], tokenizer: Any, query: str, response: str, max_length: int
) -> Encoded:
    """A row of which the answer's end is missing, and of a chat also what its half exceeds."""
    if read is _read_chats:
        half = max_length // 2
        query = _shortened(query, lambda q: len(read(tokenizer, [q], [""])["input_ids"][0]) <= half)
    side, tokenizer.truncation_side = tokenizer.truncation_side, "right"
    try:
        return read(tokenizer, [query], [response], truncation=True, max_length=max_length)
    finally:
        tokenizer.truncation_side = side


def _shortened(query: str, fits: Callable[[str], bool]) -> str:
    """The longest end of a query that fits: without its first turns, or its last one's first words.

    A system message stays as long as it leaves room for the rest.
    """
    turns = query_turns(query)
    for system in [turns[:1], []] if turns[0][0] == "System" else [[]]:
        rest = turns[len(system) :] if system else [t for t in turns if t[0] != "System"]
        ends = [rest[i:] for i, (role, _) in enumerate(rest) if role == "Human"]
        for end in ends:
            if fits(query_text(system + end)):
                return query_text(system + end)
        text = ends[-1][0][1] if ends else ""
        starts = [word.start() for word in re.finditer(r"\S+", text)] + [len(text)]

        def end_from(start: int, system: list[Turn] = system, text: str = text) -> str:
            return query_text([*system, ("Human", text[start:])])

        kept = bisect_left(starts, True, key=lambda start: fits(end_from(start)))
        if kept < len(starts):
            return end_from(starts[kept])
    return ""


def _logits(model: Any, tokenizer: Any, rows: list[dict[str, list[int]]], side: str) -> Tensor:
    """The model's scores of some rows as one batch, (B,), in float32."""
    batch = tokenizer.pad(rows, return_tensors="pt", padding_side=side)
    return model(**batch.to(model.device)).logits[:, 0].float()


@torch.inference_mode()
def _harmless_padding(model: Any, tokenizer: Any, max_length: int) -> str | None:
    """The side on which padding changes no score, the tokenizer's own first; None if neither.

    Architectures differ: some count positions from the first token, padding or not, and some read
    the score off the last. So it is tried out, on a short text and a longer one.
    """
    texts = ["Yes.", "Yes, and here is why: it is as long as that."]
    encoded = encode(tokenizer, ["Is it?"] * 2, texts, max_length)
    rows = [{name: values[i] for name, values in encoded.items()} for i in range(2)]
    alone = torch.cat([_logits(model, tokenizer, [row], "right") for row in rows])
    tolerance = (1e-3 if model.dtype == torch.float32 else 3e-2) * max(
        1.0, float(alone.abs().max())
    )
    for side in dict.fromkeys((tokenizer.padding_side, "right", "left")):
        if torch.allclose(_logits(model, tokenizer, rows, side), alone, rtol=0, atol=tolerance):
            return side
    logger.warning("padding changes what %s scores: batches hold one length", type(model).__name__)
    return None


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
    """The most tokens the model takes: the tokenizer's limit, but no more than its positions.

    RoBERTa and its kin count positions from behind that of their padding.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            positions -= module.padding_idx + 1
            break
    # XLNet says -1, and T5 nothing: any length goes.
    return (
        min(tokenizer.model_max_length, positions) if positions > 0 else tokenizer.model_max_length
    )
