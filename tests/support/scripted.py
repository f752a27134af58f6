"""A model that says what it is told."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Scripted:
    """Answers the queries one after the other from a script, padded as `generate` pads.

    A row that has said EOS says the pad token until all rows have, or the script is at its end.
    """

    def __init__(self, script: list[list[int]], pad: int, eos: list[int]) -> None:
        self.script, self.pad, self.eos = iter(script), pad, eos
        self.calls: list[dict[str, Any]] = []

    def generate(self, input_ids: Tensor, **settings: Any) -> Tensor:
        """The queries and their answers."""
        self.calls.append({"input_ids": input_ids, **settings})
        answers = [self.until_eos(next(self.script)) for _ in input_ids]
        width = max(len(answer) for answer in answers)
        padded = [answer + [self.pad] * (width - len(answer)) for answer in answers]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    def until_eos(self, answer: list[int]) -> list[int]:
        """As far as a model would go that was told to say this."""
        end = next((t for t, token in enumerate(answer) if token in self.eos), len(answer))
        return answer[: end + 1]
