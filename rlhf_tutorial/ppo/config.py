"""The settings of PPO, under the names and with the defaults of TRL 0.11.4."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import wraps
from math import ceil
from typing import Any

from ..errors import TutorialError
from ..harmless import without_harmless
from .math import KL_KINDS

logger = logging.getLogger(__name__)

NOT_SUPPORTED = {
    "push_to_hub_if_best_kwargs": (
        "a step uploads nothing: call trainer.push_to_hub(repo_id) where you want it"
    ),
    "is_encoder_decoder": "only decoder-only models can be trained",
    "world_size": "set by accelerate: read trainer.accelerator.num_processes",
    "backward_batch_size": "it is mini_batch_size * gradient_accumulation_steps: set those",
    "global_backward_batch_size": "computed, not set: see mini_batch_size",
    "global_batch_size": "computed, not set: see batch_size",
}
"""Fields of TRL 0.11.4's PPOConfig that are refused, and why, unless they ask for nothing."""

WITHOUT_EFFECT = {
    "optimize_cuda_cache": "it has no effect on results",
    "optimize_device_cache": "it has no effect on results",
    "gradient_checkpointing": (
        "in TRL 0.11.4 it had no effect, since models checkpoint only in training mode and PPO "
        "runs them in evaluation mode; a smaller mini_batch_size or shared layers save memory"
    ),
    "compare_steps": "it belongs to push_to_hub_if_best_kwargs, and nothing is uploaded",
    "is_peft_model": "the trainer looks at the model itself, as TRL's did",
}
"""Fields of TRL 0.11.4's PPOConfig that are taken and change nothing, and why."""

READ_ONCE = {
    "learning_rate": "set it in trainer.optimizer.param_groups, or give an lr_scheduler",
    "init_kl_coef": "set trainer.kl_coef",
    **dict.fromkeys(
        ("seed", "gradient_accumulation_steps", "remove_unused_columns", "accelerator_kwargs")
        + ("log_with", "tracker_project_name", "tracker_kwargs", "project_kwargs"),
        "make another trainer",
    ),
}
"""Fields of PPOConfig that are read when the trainer is made, and what to do to change them."""

RENAMED = {"forward_batch_size": "mini_batch_size"}
"""Old names of fields, which TRL 0.11.4 still took, and what they go before."""


def _takes_trls_fields(cls: type) -> type:
    """Let a dataclass's constructor take TRL's other fields; those that matter are refused."""
    init: Callable[..., None] = vars(cls)["__init__"]

    @wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = without_harmless(kwargs, NOT_SUPPORTED, WITHOUT_EFFECT)
        for old, name in RENAMED.items():
            if value := kwargs.pop(old, None):
                logger.info("%s=%r is taken as %s, whose old name it is", old, value, name)
                kwargs[name] = value
        for name in NOT_SUPPORTED.keys() & kwargs.keys():
            raise TutorialError(f"PPOConfig.{name} is not supported: {NOT_SUPPORTED[name]}")
        init(self, *args, **kwargs)

    setattr(cls, "__init__", __init__)  # noqa: B010 (mypy knows no assignment to it)
    return cls


@_takes_trls_fields
@dataclass
class PPOConfig:
    """What `PPOTrainer` needs to know, under the names and with the defaults of TRL 0.11.4.

    Raises:
        TutorialError: if a field is out of its range, or one that TRL had and this has not
            (`NOT_SUPPORTED`), with the field's name.
    """

    exp_name: str = ""
    task_name: str | None = None
    model_name: str = "gpt2"
    query_dataset: str = "stanfordnlp/imdb"
    reward_model: str = "sentiment-analysis:lvwerra/distilbert-imdb"
    """Five names for the tracker and the reader's own use; the trainer reads none of them."""
    steps: int = 20_000
    """Samples that a script means to train on; see `total_ppo_epochs`."""

    log_with: str | None = None
    """A tracker of accelerate ("wandb", "tensorboard", ...), by name or as an object."""
    tracker_project_name: str = "trl"
    tracker_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to `Accelerator.init_trackers`."""
    project_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to `accelerate.utils.ProjectConfiguration`, {"logging_dir": ...} for instance."""
    remove_unused_columns: bool = True
    """Keep only the columns input_ids, attention_mask, label, query and response of a Dataset."""

    dataset_num_proc: int | None = None
    """For the script's own use: the trainer does not process the dataset."""

    seed: int = 0
    """Seeds the sampling of responses, the order of prompts and the order of mini-batches."""
    learning_rate: float = 1.41e-5
    """Of the default optimizer, Adam; ignored when an optimizer is given."""

    batch_size: int = 128
    """Responses per step."""
    mini_batch_size: int = 128
    """Responses per backward pass."""
    gradient_accumulation_steps: int = 1
    """Backward passes per optimizer update."""
    ppo_epochs: int = 4
    """Passes over the batch in one step."""

    init_kl_coef: float = 0.2
    """beta, the weight of the KL penalty, at the start."""
    adap_kl_ctrl: bool = True
    """Whether beta follows the measured KL (`target`, `horizon`) or stays as it is."""
    target: float = 6.0
    """KL per response, in nats, that the adaptive controller steers towards."""
    horizon: int = 10_000
    """Samples over which the adaptive controller acts."""
    kl_penalty: str = "kl"
    """Estimator of the KL: "kl", "abs", "mse" or "full" (see `ppo.math.kl_per_token`)."""

    gamma: float = 1.0
    """Discount per token."""
    lam: float = 0.95
    """GAE's lambda."""
    cliprange: float = 0.2
    """Clip of the probability ratio."""
    cliprange_value: float = 0.2
    """Clip of the value's change."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    ptx_coef: float = 0.0
    """Weight of the loss on given replies (PPO-ptx: Ouyang et al. 2022, eq. 2); TRL had none."""
    ratio_threshold: float = 10.0
    """A mini-batch with a larger mean ratio is skipped."""
    max_grad_norm: float | None = None
    """Gradient norm to clip to, if any."""
    temperature: float = 1.0
    """The policy is softmax(z / temperature), and so is the reference: what is sampled, and every
    log-probability, entropy and KL. TRL's PPO had none; its RLOO and GRPO have."""
    early_stopping: bool = False
    """Whether to leave the PPO epochs once the policy has moved 1.5 times `target_kl`."""
    target_kl: float = 1.0
    """Mean log-ratio, in nats per token, for early stopping."""

    use_score_scaling: bool = False
    """Divide the scores by their running standard deviation."""
    use_score_norm: bool = False
    """With score scaling: subtract their running mean as well."""
    score_clip: float | None = None
    """Clip the (scaled) scores to plus or minus this."""
    whiten_rewards: bool = False
    """Scale the per-token rewards to unit variance, before the advantages are computed."""

    accelerator_kwargs: dict[str, Any] = field(default_factory=dict)
    """Passed on to `accelerate.Accelerator`, for instance {"mixed_precision": "bf16"}."""

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)

    @property
    def backward_batch_size(self) -> int:
        """Responses per update of the weights."""
        return self.mini_batch_size * self.gradient_accumulation_steps

    @backward_batch_size.setter
    def backward_batch_size(self, given: int) -> None:
        """Scripts of TRL's set what it is; TutorialError for anything else."""
        if given != self.backward_batch_size:
            raise TutorialError(
                f"PPOConfig.backward_batch_size is set to {given}, and "
                f"{NOT_SUPPORTED['backward_batch_size']}"
            )

    @property
    def total_ppo_epochs(self) -> int:
        """PPO steps that take in `steps` samples; a script may stop there, the trainer does not."""
        return ceil(self.steps / self.batch_size)

    def __post_init__(self) -> None:
        for name in ("batch_size", "mini_batch_size", "gradient_accumulation_steps", "ppo_epochs"):
            if getattr(self, name) < 1:
                raise TutorialError(f"PPOConfig.{name} is {getattr(self, name)}: use 1 or more")
        update = self.backward_batch_size
        if update > self.batch_size:
            raise TutorialError(
                f"PPOConfig.mini_batch_size x gradient_accumulation_steps = {update} is more than "
                f"batch_size {self.batch_size}: set mini_batch_size (unset it is 128 as in TRL "
                "0.11; old releases had 1)"
            )
        if self.batch_size % update:
            raise TutorialError(
                f"PPOConfig.batch_size {self.batch_size} is not a multiple of mini_batch_size x "
                f"gradient_accumulation_steps = {update}: change one of the three"
            )
        amounts = ("learning_rate", "init_kl_coef", "vf_coef", "ptx_coef")
        for name in (*amounts, "cliprange", "cliprange_value", "target_kl"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise TutorialError(f"PPOConfig.{name} is {getattr(self, name)}: use 0 or more")
        for name in ("max_grad_norm", "score_clip"):
            if getattr(self, name) == 0:  # a limit of 0 would leave nothing to learn from
                logger.info("PPOConfig.%s is 0, which is taken as no limit", name)
                setattr(self, name, None)
        limits = ["target", "ratio_threshold", "temperature", "max_grad_norm", "score_clip"]
        for name in limits + ["horizon"] * self.adap_kl_ctrl:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TutorialError(f"PPOConfig.{name} is {value}: use more than 0")
        if self.temperature == float("inf"):
            raise TutorialError("PPOConfig.temperature is inf: use a number")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise TutorialError(f"PPOConfig.{name} is {getattr(self, name)}: use 0 to 1")
        if self.kl_penalty not in KL_KINDS:
            raise TutorialError(
                f"PPOConfig.kl_penalty is {self.kl_penalty!r}: use one of {', '.join(KL_KINDS)}"
            )


def read_once(config: PPOConfig) -> dict[str, Any]:
    """The fields of `READ_ONCE`, as they are now."""
    fields = {name: getattr(config, name) for name in READ_ONCE}
    return {k: dict(v) if isinstance(v, dict) else v for k, v in fields.items()}


def check_unchanged(config: PPOConfig, at_first: Mapping[str, Any]) -> None:
    """Raise TutorialError for a field that was changed when it is no longer read.

    Args:
        at_first: what `read_once` gave when the trainer was made.
    """
    for name, value in read_once(config).items():
        if value != at_first[name]:
            raise TutorialError(
                f"PPOConfig.{name} was {at_first[name]!r} when the trainer was made, and to set it "
                f"to {value!r} now has no effect: {READ_ONCE[name]}"
            )
