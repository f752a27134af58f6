"""What the trainer cannot work with, refused in one line before anything changes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import lora
from ..errors import ModelError, NoAttribute, RewardError, TrainingError
from ..families import context_length, text_config
from ..models import AutoModelForCausalLMWithValueHead
from ..scores import checked_scores
from .math import masked_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


TRLS_METHODS = {
    "compute_rewards": "rewards(scores, evaluation)",
    "compute_advantages": "advantages(evaluation, rewards)",
    "loss": "losses(logprobs, values, entropy, old)",
    "batched_forward_pass": "forward(model, batch)",
    "prepare_model_inputs": "lay_out(queries, responses, response_masks)",
    "train_minibatch": "update(now, old, replies)",
    "record_step_stats": "report(batch, scores, experience, minibatches)",
    "gather_stats": "report(batch, scores, experience, minibatches)",
    "_early_stop": "optimise(batch, experience, live)",
    "_generate_batched": "generate(query_tensor, ...)",
    "_kl_penalty": "rewards(scores, evaluation)",
    "_save_pretrained": "save_pretrained(folder)",
    "_step_safety_checker": "step(queries, responses, scores, response_masks)",
}
"""Methods of TRL 0.11.4's PPOTrainer that scripts override or call, and which does that here."""

GONE = {
    "prepare_dataloader": "give the trainer the dataset, and go through trainer.dataloader",
    "_remove_unused_columns": "ppo.batches.used_columns(dataset) does it",
    "create_model_card": "save_pretrained writes none: put a README.md into the folder",
    "_show_tokens": "tokenizer.decode shows a token",
    "_prepare_deepspeed": "DeepSpeed's ZeRO is not supported: accelerate's processes are",
    "dataset": "it is trainer.dataloader.dataset",
    "data_collator": "it is trainer.dataloader.collate",
    "running": "it is trainer.score_moments",
    "current_step": "it is len(trainer.history)",
    "model_params": "they are trainer.trained_parameters().values()",
    "optional_peft_ctx": "trainer.ref_model is the model with its adapter off",
    "is_encoder_decoder": "only decoder-only models can be trained",
    "highest_reward": "a step uploads nothing: keep it yourself, and call trainer.push_to_hub",
}
"""Other names of TRL 0.11.4's PPOTrainer, and what to use instead."""


def check_methods(overridden: Mapping[str, Any]) -> None:
    """Raise ModelError for a subclass with one of `TRLS_METHODS`: nothing here would call it.

    Of the others that TRL called a line in the log says so.
    """
    for name in TRLS_METHODS.keys() & overridden.keys():
        raise ModelError(f"{UNCALLED.format(name)}: {_instead_of(name, 'override')}")
    for name in GONE.keys() & overridden.keys():
        if callable(overridden[name]):
            logger.warning("%s: %s", UNCALLED.format(name), GONE[name])


UNCALLED = "{} is a method of TRL's that PPOTrainer does not call"


def no_attribute(owner: object, name: str) -> AttributeError:
    """What to raise for a name that the trainer has not; of TRL's it says what to use instead."""
    if name in TRLS_METHODS or name in GONE:
        return NoAttribute(f"PPOTrainer has no {name}, which is TRL's: {_instead_of(name, 'use')}")
    return AttributeError(f"{type(owner).__name__!r} object has no attribute {name!r}")


def _instead_of(name: str, verb: str) -> str:
    if name in GONE:
        return GONE[name]
    return f"{verb} {TRLS_METHODS[name]} instead, see docs/coming-from-trl.md"


def is_trained_with(ref_model: Any, model: Any) -> bool:
    """Whether the reference has weights that PPO changes; one that is switched has them rightly."""
    if not all(isinstance(given, torch.nn.Module) for given in (ref_model, model)):
        return False
    if isinstance(getattr(ref_model, "pretrained_model", None), lora.Switched):
        return False
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return any(id(p) in trained for p in ref_model.parameters())


def check_arguments(
    model: Any,
    ref_model: Any,
    num_shared_layers: Any,
    training_data_collator: Any,
    ptx_dataset: Any,
) -> None:
    """Raise ModelError for models or replies that PPO cannot use, and for what only TRL took."""
    if ref_model is not None and is_trained_with(ref_model, model):
        raise ModelError(
            "ref_model holds weights of the policy that are trained, so it would change with it "
            "(get_peft_model changes its model in place): leave it out, the trainer makes one"
        )
    for name, given in {"model": model, "ref_model": ref_model or model}.items():
        if not isinstance(given, AutoModelForCausalLMWithValueHead):
            raise ModelError(
                f"{name} is a {type(given).__name__}: wrap it with "
                "AutoModelForCausalLMWithValueHead.from_pretrained"
            )
    if any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
        raise ModelError(
            "the policy's weights are float16, which one update of Adam's wrecks: load it with "
            "dtype=torch.float32, and on a GPU give PPOConfig accelerator_kwargs="
            "{'mixed_precision': 'fp16'}"
        )
    if any(p.requires_grad and p.dtype == torch.bfloat16 for p in model.parameters()):
        logger.warning(
            "the policy's weights are bfloat16, in which most of PPO's updates are rounded away: "
            "load it with dtype=torch.float32 (transformers takes the checkpoint's own otherwise)"
        )
    lora.check_trained(model.pretrained_model)
    known = [vocabulary(given) for given in (model, ref_model or model)]
    if known[0] != known[1]:
        raise ModelError(
            f"the policy knows {known[0]} tokens, the reference {known[1]}: resize the policy's "
            "embeddings before the reference is made"
        )
    if ref_model is not None and num_shared_layers is not None:
        raise ModelError(
            "num_shared_layers is for the reference that the trainer makes: leave ref_model out, "
            "or make it with create_reference_model(model, num_shared_layers)"
        )
    if training_data_collator is not None:
        raise ModelError(
            "training_data_collator is not supported: a batch is laid out in one way, queries "
            "padded on the left and responses on the right"
        )
    if ptx_dataset:
        contexts, replies = zip(*ptx_dataset, strict=True)
        checked_tokens(model.config, ptx_contexts=contexts, ptx_replies=replies)


def check_optimizer(optimizer: Any, model: torch.nn.Module) -> None:
    """Raise ModelError for an optimizer that would change nothing of this policy."""
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not trained & given:
        raise ModelError(
            "the optimizer has no weight of this policy that is trained: make it of "
            "model.parameters(), after AutoModelForCausalLMWithValueHead.from_pretrained"
        )


def usable_tokenizer(
    tokenizer: PreTrainedTokenizerBase | None, model: AutoModelForCausalLMWithValueHead
) -> PreTrainedTokenizerBase:
    """The tokenizer, if it can pad for this model; else raise ModelError."""
    if tokenizer is None:
        raise ModelError("PPOTrainer needs a tokenizer: give it the policy's")
    padding = padding_of(tokenizer)
    embeddings = vocabulary(model)
    if padding >= embeddings:  # often a pad token added to the tokenizer alone
        raise ModelError(
            f"the tokenizer pads with token {padding}, but the model knows "
            f"{embeddings}: load the tokenizer it was trained with, or set tokenizer.pad_token = "
            "tokenizer.eos_token, or call model.pretrained_model.resize_token_embeddings"
        )
    return tokenizer


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's pad token; of one that has none, or none yet, its end of sequence.

    Which token stands at padding changes nothing: a mask says where the padding is.

    Raises:
        ModelError: if it has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ModelError(
        "PPOTrainer needs a tokenizer with a pad token: set tokenizer.pad_token = "
        "tokenizer.eos_token"
    )


def vocabulary(model: AutoModelForCausalLMWithValueHead) -> int:
    """How many tokens the model knows."""
    return int(model.pretrained_model.get_input_embeddings().weight.shape[0])


def check_sizes(batch_size: int, **lists: Sequence[Any]) -> None:
    """Raise ModelError, or RewardError for scores, unless each list has `batch_size` items."""
    for name, items in lists.items():
        error = RewardError if name == "scores" else ModelError
        if not hasattr(items, "__len__") or (isinstance(items, Tensor) and not items.ndim):
            raise error(f"step got a {type(items).__name__} as {name}: give a list of {batch_size}")
        if len(items) != batch_size:
            raise error(f"step got {len(items)} {name}, but batch_size is {batch_size}")


def checked_tokens(config: PretrainedConfig, **lists: Sequence[Tensor]) -> list[list[Tensor]]:
    """The lists on the CPU, each in one transfer: a GPU is waited for once.

    Args:
        config: of the language model.

    Raises:
        ModelError: unless each list holds 1-d tensors of token ids that the model knows.
    """
    found = []
    for name, tensors in lists.items():
        for i, tensor in enumerate(tensors):
            item = f"{name}[{i}]"
            if not isinstance(tensor, Tensor):
                raise ModelError(f"{item} is a {type(tensor).__name__}: give 1-d tensors of ids")
            if tensor.ndim != 1 or not len(tensor):
                raise ModelError(
                    f"{item} has shape {tuple(tensor.shape)}: each must be a 1-d tensor of at "
                    "least one token id"
                )
            if tensor.dtype not in (torch.int64, torch.int32):
                raise ModelError(f"{item} is of {tensor.dtype}: token ids must be torch.int64")
        ids = torch.cat([tensor.to(tensors[0].device) for tensor in tensors]).cpu()
        size = text_config(config).vocab_size
        if not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise ModelError(
                f"{name} hold token ids from {int(ids.min())} to {int(ids.max())}, but the model "
                f"knows 0 to {size - 1}: use the policy's own tokenizer"
            )
        found.append(list(ids.split([*map(len, tensors)])))
    check_room(config, max(sum(map(len, row)) for row in zip(*lists.values(), strict=True)))
    return found


def warn_of_what_is_no_text(
    queries: Sequence[Tensor], responses: Sequence[Tensor], padding: int
) -> None:
    """A line in the log where padding, or a query once more, would be read and trained on.

    Args:
        queries, responses: on the CPU.
        padding: the tokenizer's pad token, which may be one that texts begin or end with: a lone
            one is taken for that.
    """
    for name, texts in {"queries": queries, "responses": responses}.items():
        for i, text in enumerate(texts):
            ends = text[:2].tolist(), text[-2:].tolist()
            if len(text) > 2 and [padding, padding] in ends:
                logger.warning(
                    "%s[%d] begins or ends with padding, which is read as text: leave it out",
                    name,
                    i,
                )
                break
    pairs = list(zip(queries, responses, strict=True))
    if all(1 < len(q) < len(r) and r[: len(q)].tolist() == q.tolist() for q, r in pairs):
        logger.warning(
            "each response begins with its query, which would be trained on as well: give what "
            "comes after it, as generate(..., return_prompt=False) does"
        )


def check_temperature(temperature: float, generation_kwargs: dict[str, Any]) -> None:
    """Raise ModelError for samples of another temperature than the one that is trained.

    At the default of 1, what `generate` is told goes before, as in TRL.
    """
    asked = generation_kwargs.get("temperature", temperature)
    if temperature != 1 and asked != temperature:
        raise ModelError(
            f"generate was given temperature {asked}, but PPOConfig.temperature is {temperature}: "
            "leave it out of generate, PPO needs samples of the policy that it trains"
        )


def check_room(config: PretrainedConfig | None, tokens: int) -> None:
    """Raise ModelError for a text of more tokens than the model can read."""
    context = None if config is None else context_length(config)
    if context is not None and tokens > context:
        raise ModelError(
            f"query and response take {tokens} tokens together, but the policy reads {context} at "
            "the most: leave out such queries (prepare_queries does), or lower max_new_tokens"
        )


def scores_tensor(scores: Sequence[float | Tensor], device: torch.device) -> Tensor:
    """The scores, (B,), from numbers or tensors of one element.

    Raises:
        RewardError: if one is no single finite number.
    """
    tensor = torch.tensor(checked_scores(scores, len(scores)))
    if not tensor.isfinite().all():
        i = int((~tensor.isfinite()).nonzero()[0])
        raise RewardError(f"the score of response {i} is {tensor[i]}: the reward must be finite")
    return tensor.to(device)


def ratio_too_large(ratio: Tensor, mask: Tensor, threshold: float) -> bool:
    """Whether a mini-batch's mean ratio, over (B, T), is above the threshold; says so if it is."""
    mean_ratio = masked_mean(ratio, mask).item()
    if mean_ratio > threshold:
        logger.warning(
            "mini-batch skipped: its mean ratio %.1f is above ratio_threshold %.1f; "
            "if this goes on, lower the learning rate",
            mean_ratio,
            threshold,
        )
    return mean_ratio > threshold


def update_refused(loss: Tensor, gradient_norm: Tensor, step: int) -> TrainingError:
    """What to raise where the gradient is not finite: Adam would carry a nan into all weights.

    Args:
        loss, gradient_norm: scalars. step: the number of the PPO step.
    """
    return TrainingError(
        f"update refused in step {step}: its gradient's norm is {gradient_norm.item()}, its loss "
        f"{loss.item():.3g}; the weights are as they were before it: look for scores or weights "
        "of enormous size; or lower learning_rate, or set max_grad_norm, and start anew"
    )
