"""A judge that is a line: grades read off a language model's hidden states by ridge regression.

A language model that reads an answer makes of it hundreds of numbers a token, its hidden states.
They are not made for grading; yet a linear function of them, fitted to a few thousand grades in
seconds, orders most answers as a reader does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..assets import as_source, resolve
from ..device import device_or_default, supports_bf16
from ..errors import DataError, ModelError, RewardError, check_whole, loading
from ..quiet import quiet_transformers
from ..scores import check_one_each, checked_scores
from ..template import CHAT, PromptTemplate
from ..trunk import cast_frozen_matrices, freeze_below

LAYERS = (18, 22)
"""Of SmolLM2's 30: chosen by cross-validation on the training prompts' grades."""
LINE_FILE, SETTINGS_FILE = "line.safetensors", "line.json"


class StateReader:
    """What the lower layers of a language model make of an answer to a query.

    Query and answer are read as turns of the model's own chat template, without a system message,
    and the end token after the answer: what the model makes of *that* tells whether something could
    end here. Special tokens are the template's alone: one that a text spells out is read as text.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layers: Sequence[int] = LAYERS,
        *,
        template: PromptTemplate = CHAT,
        device: torch.device | str | None = None,
        batch_size: int = 32,
        bf16: bool | None = None,
        progress: Callable[..., Iterable[int]] | None = None,
    ) -> None:
        """Take over a causal language model: its weights are frozen, and rounded where bf16.

        `bf16=None` uses bfloat16 where supported. `progress`, as `tqdm`, shows how batches are
        read; by default that is silent.

        Raises:
            ModelError: if the model has not that many layers.
        """
        self.device = device_or_default(device)
        halves = freeze_below(model.to(self.device).eval(), max(layers), samples=False)
        if halves is None:
            raise ModelError(
                f"{type(model).__name__} cannot stop between two layers: use another model as judge"
            )
        self.trunk = halves.trunk.base_model
        self.trunk.requires_grad_(False)
        self.bf16 = supports_bf16(self.device) if bf16 is None else bf16
        if self.bf16:
            cast_frozen_matrices(self.trunk)
        self.template = template.bind(tokenizer)
        self.layers, self.batch_size, self.progress = tuple(layers), batch_size, progress
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_length = positions or tokenizer.model_max_length

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        layers: Sequence[int] = LAYERS,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **settings: Any,
    ) -> StateReader:
        """The reader of a language model, from a folder or the hub; `settings` as above.

        `revision`, `token` and `cache_dir` are for the download from the Hub.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = as_source(folder_or_id, revision or "main")
        folder = resolve(source, token=token, cache_dir=cache_dir)
        check_whole(folder)
        with loading(folder), quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False
            )
        return cls(model, tokenizer, layers, **settings)

    @torch.inference_mode()
    def __call__(self, queries: list[str], responses: list[str]) -> Tensor:
        """(N, F): for each layer the mean over the answer's tokens, and the state at its end token.

        In float32, on the CPU; F is twice the layers times the hidden size.
        """
        check_one_each(queries, responses)
        if not queries:
            raise RewardError("there is no answer to read: give at least one")
        tokenizer, end = self.template.tokenizer, self.template.eos_token_ids[0]
        rows = []
        for query, response in zip(queries, responses, strict=True):
            text = self.template.plain(response)
            answer = tokenizer(text, add_special_tokens=False)["input_ids"]
            # Too long for the model, the query loses its beginning; only then the answer its end.
            ended = [*answer[: self.max_length - 2], end]
            asked = self.template.encode(self.template.plain(query))
            rows.append((asked[max(0, len(asked) + len(ended) - self.max_length) :], ended))
        # Sorted by length, so that the rows of a batch need little padding.
        order = sorted(range(len(rows)), key=lambda i: sum(map(len, rows[i])))
        features: dict[int, Tensor] = {}
        starts: Iterable[int] = range(0, len(order), self.batch_size)
        if self.progress is not None:
            starts = self.progress(starts, desc="The judge reads", unit="batch")
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            for start in starts:
                indices = order[start : start + self.batch_size]
                read = self._read([rows[i] for i in indices])
                features |= dict(zip(indices, read, strict=True))
        return torch.stack([features[i] for i in range(len(rows))])

    def _read(self, rows: list[tuple[list[int], list[int]]]) -> Tensor:
        """The features of a batch of queries and answers in tokens, (B, F)."""
        longest = max(len(query) + len(answer) for query, answer in rows)
        input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
        attention_mask, answers = torch.zeros_like(input_ids), torch.zeros(len(rows), longest)
        ends = []
        for row, (query, answer) in enumerate(rows):
            length = len(query) + len(answer)
            input_ids[row, :length] = torch.tensor(query + answer)
            attention_mask[row, :length] = 1
            # The tokens between the query and the end token; of an empty answer that token.
            answers[row, len(query) : max(length - 1, len(query) + 1)] = 1
            ends.append(length - 1)
        states = self.trunk(
            input_ids.to(self.device),
            attention_mask=attention_mask.to(self.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        parts = []
        weights = (answers / answers.sum(dim=1, keepdim=True)).to(self.device)
        for layer in self.layers:
            hidden = states[layer].float()
            parts += [
                torch.einsum("bt,bth->bh", weights, hidden),
                hidden[torch.arange(len(rows)), torch.tensor(ends)],
            ]
        return torch.cat(parts, dim=1).cpu()


class StateJudge:
    """A linear function of a `StateReader`'s features, as a reward."""

    def __init__(self, reader: StateReader, weights: Tensor, bias: float) -> None:
        """`weights`: (F,), one for each number that the reader gives."""
        self.reader, self.weights, self.bias = reader, weights, bias

    @classmethod
    def fit(
        cls,
        reader: StateReader,
        queries: list[str],
        responses: list[str],
        grades: Sequence[float],
        ridge: float = 2.0,
    ) -> StateJudge:
        """The judge that comes closest to these grades: see `fit_line`."""
        return cls(reader, *fit_line(reader(queries, responses), torch.tensor(grades), ridge))

    @classmethod
    def from_pretrained(cls, base: str | Path, folder: str | Path, **settings: Any) -> StateJudge:
        """The judge that `save_pretrained` left in a folder, on its language model `base`.

        Args:
            settings: as for `StateReader.from_pretrained`, those of the download among them.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        with loading(folder):
            line = load_file(folder / LINE_FILE)
            layers = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))["layers"]
        reader = StateReader.from_pretrained(base, layers, **settings)
        features = 2 * len(layers) * reader.trunk.config.hidden_size
        if line["weights"].shape != (features,):
            raise ModelError(
                f"the judge in {folder} has {line['weights'].numel()} weights, but {base} gives "
                f"{features} numbers: use the model that it was fitted on"
            )
        return cls(reader, line["weights"], line["bias"].item())

    def save_pretrained(self, folder: str | Path) -> None:
        """Leave the line in a folder: a few kilobytes, without the language model."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        line = {"weights": self.weights.contiguous(), "bias": torch.tensor(self.bias)}
        save_file(line, folder / LINE_FILE)
        settings = json.dumps({"layers": list(self.reader.layers)})
        (folder / SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")

    def __call__(self, queries: list[str], responses: list[str]) -> list[float]:
        """Grade each response to the query at the same place, in the caller's order."""
        if not len(queries) and not len(responses):
            return []
        scores = self.reader(list(queries), list(responses)) @ self.weights + self.bias
        return checked_scores(scores.tolist(), len(responses))


def fit_line(features: Tensor, grades: Tensor, ridge: float = 2.0) -> tuple[Tensor, float]:
    """Ridge regression (Hoerl & Kennard 1970) from features to grades: weights (F,) and bias.

    With z the features scaled to mean 0 and deviation 1, the weights minimise
    sum_i (grade_i - bias - w z_i)^2 + ridge F |w|^2; they are given for the features unscaled.

    Args:
        features: (N, F). grades: (N,). ridge: the penalty, in units of the number of features.

    Raises:
        DataError: unless there is a grade for each answer, and two answers at least.
    """
    if len(features) != len(grades) or len(grades) < 2:
        raise DataError(
            f"{len(grades)} grades for {len(features)} answers: give one for each, of two at least"
        )
    x, y = features.double(), grades.double()
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0) + 1e-6
    z = (x - mean) / deviation
    penalty = ridge * z.shape[1] * torch.eye(z.shape[1], dtype=z.dtype)
    weights = torch.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean())) / deviation
    return weights.float(), float(y.mean() - mean @ weights)
