"""The settings of `generate`: as transformers takes them, to what sampling needs to know."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..harmless import asks_nothing

logger = logging.getLogger(__name__)

LEFT_OUT = (
    "attention_mask",
    "remove_padding",
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "synced_gpus",
    "streamer",
    "num_return_sequences",
)
"""Settings without which the answers are the same: queries come without padding here, and answers
go back as tensors, without any."""

DEFAULT_NEW_TOKENS = 20
"""Of transformers."""


def plain_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of `generate`: a `generation_config` spelled out, and without what changes
    nothing. Single settings go before the config's.

    Raises:
        ModelError: for a mask that hides tokens, or for several answers to a query.
    """
    settings = dict(given)
    config = settings.pop("generation_config", None)
    if config is not None:
        spelled = {k: v for k, v in config.to_diff_dict().items() if not k.startswith("_")}
        spelled.pop("transformers_version", None)
        settings = spelled | settings
    mask = settings.get("attention_mask")
    if mask is not None and not torch.as_tensor(mask).all():
        raise ModelError(
            "generate was given an attention_mask that hides tokens: give each query as a 1-d "
            "tensor without its padding"
        )
    if (settings.get("num_return_sequences") or 1) != 1:
        raise ModelError(
            "num_return_sequences is not supported: repeat each query in the list instead"
        )
    if settings.get("return_dict_in_generate"):
        logger.info("return_dict_in_generate is left out: answers come as tensors")
    for name in LEFT_OUT:
        settings.pop(name, None)
    for name in ("max_new_tokens", "pad_token_id"):  # where 0 is a number like others
        if name in settings and settings[name] is None:
            del settings[name]
    asked = ("max_length", "min_new_tokens", "stop_strings", "stopping_criteria")
    return {k: v for k, v in settings.items() if k not in asked or not asks_nothing(v)}


def new_tokens(settings: Mapping[str, Any], width: int, model: Any) -> int:
    """The longest answer to queries of `width` tokens, padding included, as transformers counts.

    Raises:
        ModelError: if `max_length` leaves no room for an answer, or none is asked for.
    """
    defaults = getattr(getattr(model, "pretrained_model", None), "generation_config", None)
    for source in (settings, vars(defaults) if defaults is not None else {}):
        if (longest := source.get("max_new_tokens")) is not None:
            if longest < 1:
                raise ModelError(
                    f"max_new_tokens is {longest}: an answer has a token at the least, use 1 or "
                    "more (a length_sampler may have drawn it)"
                )
            return max(longest, settings.get("min_new_tokens") or 0)
        if (longest := source.get("max_length")) is not None:
            if longest <= width and source is settings:
                raise ModelError(
                    f"max_length is {longest}, and a query has {width} tokens: set max_new_tokens"
                )
            return max(0, longest - width)
    return DEFAULT_NEW_TOKENS


class Stops:
    """Stop strings and stopping criteria as one criterion, which knows where each text ended.

    transformers fills a text that has ended with padding until all of its batch have.
    """

    def __init__(self, criteria: list[Any]) -> None:
        self.criteria = criteria
        self.ends: Tensor | None = None
        """(B,), the lengths at which texts ended; 0 for those that have not."""

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Stops | None:
        """That of the settings of generate, in whose place it is put; None if they have none.

        Raises:
            ModelError: for stop strings without a `tokenizer`, or beside beams.
        """
        from transformers import StoppingCriteriaList, StopStringCriteria

        tokenizer = settings.pop("tokenizer", None)
        criteria = list(settings.pop("stopping_criteria", ()))
        if (strings := settings.pop("stop_strings", None)) is not None:
            if tokenizer is None:
                raise ModelError("stop_strings need a tokenizer: give generate tokenizer=...")
            criteria.append(StopStringCriteria(tokenizer, strings))
        if not criteria:
            return None
        if (settings.get("num_beams") or 1) > 1:
            raise ModelError(
                "stop_strings and stopping_criteria do not go with num_beams, since the beams of a "
                "text end in different places: leave num_beams out, PPO samples"
            )
        stops = cls(criteria)
        settings["stopping_criteria"] = StoppingCriteriaList([stops])
        return stops

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which texts are to end, (B,)."""
        rows, width = input_ids.shape
        done = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            done |= torch.as_tensor(criterion(input_ids, scores, **kwargs), device=done.device)
        if self.ends is None:
            self.ends = torch.zeros(rows, dtype=torch.long, device=input_ids.device)
        self.ends[done & (self.ends == 0)] = width
        return done

    def cut(self, row: int, sequence: Tensor) -> Tensor:
        """A text without the padding behind its end, (L,) to at most (L,)."""
        if self.ends is None or len(self.ends) <= row:
            return sequence
        end = int(self.ends[row])
        return sequence[:end] if end else sequence
