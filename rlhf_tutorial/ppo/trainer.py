"""The PPO trainer: generate, score (yours), step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from .. import lora
from ..errors import CheckpointError
from ..families import end_token_ids, text_config
from ..models import (
    AutoModelForCausalLMWithValueHead,
    create_reference_model,
    shares_trunk,
    upload,
)
from ..randomness import seeded
from ..trunk import TrunkStates, cast_frozen_matrices
from . import checkpoint, checks
from .batches import Batches, Replies, collate_columns
from .config import PPOConfig, check_unchanged, read_once
from .generation import plain_settings
from .identity import difference, fingerprint, fingerprint_of_prompts, identity
from .math import (
    RunningMoments,
    adapted_kl_coef,
    gae,
    kl_per_token,
    language_model_loss,
    masked_whiten,
    policy_loss,
    rewards_per_token,
    value_loss,
)
from .passes import RecordedPasses, said_by
from .processes import indices_of_all, make_accelerator, prepare, rows_of_all
from .rollout import Batch, Evaluation, Experience, ForwardPass, collate, generate_responses
from .stats import Clock, minibatch_stats, scalars, step_stats, with_items
from .token_stats import logprobs_and_entropy
from .trackers import log_stats, start_trackers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


@dataclass
class KLControl:
    """beta under TRL's name, to be read and set."""

    trainer: PPOTrainer

    @property
    def value(self) -> float:
        """The trainer's `kl_coef`."""
        return self.trainer.kl_coef

    @value.setter
    def value(self, beta: float) -> None:
        """Set the trainer's `kl_coef`."""
        self.trainer.kl_coef = beta


class PPOTrainer:
    """Proximal policy optimisation of a language model against scores of whole responses.

    One step of training is three calls:

        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=16)
        scores = ...  # one number per response, from a reward model or any function
        stats = trainer.step(queries, responses, scores)

    Dropout stays off: the ratio of new to old probabilities must be 1 before the first update.
    Random draws (sampling, order of prompts and mini-batches) come from the trainer's own seeded
    generator, and the caller's random state is left alone.

    With several processes (torchrun, accelerate launch) each generates and scores `batch_size`
    responses; losses, whitening, KL control, decisions and stats are those of all of them together.
    `Batch` and `ForwardPass` hold the rows of this process, `Evaluation` and `Experience` those of
    all; `rows_of_all` leads from the one to the other.

    Attributes:
        dataloader: batches of the dataset as dicts of lists, shuffled, the last short one dropped;
            None without a dataset.
        kl_coef: beta, the current weight of the KL penalty.
        history: the numbers of each step so far.
        sampled: what the policy's frozen trunk made of the responses last generated; `step` takes
            it in place of a pass over them.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse methods that TRL called and this trainer would pass over."""
        super().__init_subclass__(**kwargs)
        checks.check_methods(vars(cls))

    def __init__(
        self,
        config: PPOConfig,
        model: AutoModelForCausalLMWithValueHead,
        ref_model: AutoModelForCausalLMWithValueHead | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Dataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        num_shared_layers: int | None = None,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        training_data_collator: None = None,
        ptx_dataset: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        """
        Args:
            ref_model: the reference for the KL penalty; by default a frozen copy of the policy as
                it is now, with `num_shared_layers` of `create_reference_model`.
            tokenizer: gives the padding and end-of-sequence tokens.
            dataset: rows with at least "input_ids", for `dataloader`.
            optimizer: Adam at `config.learning_rate` over the trainable parameters by default.
            data_collator: makes a batch of rows; by default `batches.collate_columns`.
            lr_scheduler: of `optimizer`, moved on once per `step`.
            training_data_collator: refused; TRL had it.
            ptx_dataset: for `config.ptx_coef`: token ids of contexts, and of the replies to them.
        """
        checks.check_arguments(
            model, ref_model, num_shared_layers, training_data_collator, ptx_dataset
        )
        self.config = config
        self.config_at_first = read_once(config)
        self.model_config = text_config(model.config)
        self.tokenizer = checks.usable_tokenizer(tokenizer, model)
        self.kl_coef = config.init_kl_coef
        self.score_moments = RunningMoments()
        self.logged = 0
        self.history: list[dict[str, float]] = []
        self.sampled: TrunkStates | None = None
        self.random = torch.Generator().manual_seed(config.seed)
        self.accelerator = make_accelerator(config)
        start_trackers(self.accelerator, config)
        self.rows_of_all = partial(rows_of_all, self.accelerator)
        if ref_model is None:
            ref_model = create_reference_model(model, num_shared_layers)
        self.shares_trunk = shares_trunk(model, ref_model)
        if self.accelerator.mixed_precision == "bf16":
            cast_frozen_matrices(model, ref_model)
        if optimizer is None:
            trainable = [p for p in model.parameters() if p.requires_grad]
            fused = self.device.type in ("cpu", "cuda")  # updates each weight in one pass
            optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=fused)
        checks.check_optimizer(optimizer, model)
        self.replies = Replies(ptx_dataset, self.accelerator, checks.padding_of(self.tokenizer))
        self.replies.check(config)
        self.dataloader: Batches | None = None
        if dataset is not None:
            self.dataloader = Batches(
                dataset, config, data_collator or collate_columns, self.accelerator
            )
        self.model, self.optimizer = prepare(self.accelerator, model.eval(), optimizer)
        self.ref_model = ref_model.to(self.device).eval()
        self.lr_scheduler = lr_scheduler
        self.recorded: dict[torch.nn.Module, RecordedPasses] = {}
        if self.device.type == "cuda" and self.model is model:  # and no wrapper of accelerate's
            self.recorded = {m: RecordedPasses(m) for m in (self.model, self.ref_model)}

    if not TYPE_CHECKING:  # for a type checker every name would be there

        def __getattr__(self, name: str) -> Any:
            """Of TRL's other names, what to use instead."""
            raise checks.no_attribute(self, name)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.accelerator.device

    @property
    def current_device(self) -> torch.device:
        """TRL's name of `device`."""
        return self.device

    @property
    def is_distributed(self) -> bool:
        """Whether there are several processes."""
        return self.accelerator.num_processes > 1

    @property
    def kl_ctl(self) -> KLControl:
        """TRL's name of what holds beta: `trainer.kl_ctl.value` is `trainer.kl_coef`."""
        return KLControl(self)

    @property
    def policy(self) -> AutoModelForCausalLMWithValueHead:
        """The model that is trained, without what accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def is_peft_model(self) -> bool:
        """Whether an adapter is trained in place of the language model's own weights."""
        return self.policy.is_peft_model

    # 1. Sample responses ---------------------------------------------------------------------

    @overload
    def generate(self, query_tensor: Tensor, **settings: Any) -> Tensor: ...

    @overload
    def generate(self, query_tensor: Sequence[Tensor], **settings: Any) -> list[Tensor]: ...

    def generate(
        self,
        query_tensor: Tensor | Sequence[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Any:
        """Sample a response to each query from the policy.

        Args:
            query_tensor: one 1-d tensor of token ids, or a list of them.
            length_sampler: draws `max_new_tokens`. batch_size: queries at a time; all by default.
            return_prompt: whether the query's tokens come first in what is returned.
            generate_ref_response: return a pair, the policy's responses and the reference's.
            generation_kwargs: for `transformers`' generate. Unless they say otherwise, sampling is
                pure: `config.temperature`, no top-k, no top-p.

        Returns:
            For a list, a list of 1-d tensors; for one query a (1, length) tensor, as in TRL.
        """
        queries = [query_tensor] if isinstance(query_tensor, Tensor) else list(query_tensor)
        (queries,) = checks.checked_tokens(self.model_config, queries=queries)
        asked = plain_settings(generation_kwargs)
        checks.check_temperature(self.config.temperature, asked)
        self.without_dropout()
        settings = {
            "temperature": self.config.temperature,
            "eos_token_id": self.end_token_ids([self.tokenizer.eos_token_id]),
            "pad_token_id": checks.padding_of(self.tokenizer),
            "batch_size": batch_size,
            "length_sampler": length_sampler,
            **({"tokenizer": self.tokenizer} if "stop_strings" in asked else {}),
            **asked,
        }
        results, trunk_states = [], []
        for model in [self.policy, self.ref_model] if generate_ref_response else [self.policy]:
            # All processes draw the same seed; its index gives each one samples of its own.
            seed = int(torch.randint(2**31, (), generator=self.random))
            seed += self.accelerator.process_index
            with seeded(seed), self.accelerator.autocast():
                responses, states = generate_responses(model, queries, **settings)
            if return_prompt:
                prompts = torch.cat(queries).to(self.device).split([*map(len, queries)])
                responses = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
            single = isinstance(query_tensor, Tensor)
            results.append(responses[0].unsqueeze(0) if single else responses)
            trunk_states.append(states)
        self.sampled = trunk_states[0]  # the policy's
        return tuple(results) if generate_ref_response else results[0]

    def end_token_ids(self, others: Iterable[int | None]) -> list[int]:
        """Tokens that end an answer: `others`, and those of the checkpoint's generation config."""
        return end_token_ids(self.policy.pretrained_model, others)

    def without_dropout(self) -> None:
        """Both models in evaluation mode, whatever a script has set in between."""
        for model in (self.model, self.ref_model):
            if any(module.training for module in model.modules()):
                model.eval()

    # 2. Score them: that is up to you ----------------------------------------------------------

    # 3. Step -----------------------------------------------------------------------------------

    def step(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        scores: Sequence[float | Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> dict[str, Any]:
        """One PPO step: turn scores into advantages, then update the policy `ppo_epochs` times.

        Args:
            queries, responses: `batch_size` 1-d tensors of token ids each.
            scores: `batch_size` numbers, higher is better.
            response_masks: see `collate`.

        Returns:
            What TRL 0.11.4 returns: floats and numpy arrays, the keys explained in docs/metrics.md.

        Raises:
            ModelError, RewardError: for a wrong number of items, empty responses, or scores that
                are not finite.
        """
        clock, size = Clock(), self.config.batch_size
        check_unchanged(self.config, self.config_at_first)
        checks.check_sizes(size, queries=queries, responses=responses, scores=scores)
        queries, responses = checks.checked_tokens(
            self.model_config, queries=queries, responses=responses
        )
        checks.warn_of_what_is_no_text(queries, responses, checks.padding_of(self.tokenizer))
        own_scores = checks.scores_tensor(scores, self.device)
        self.without_dropout()
        for passes in self.recorded.values():
            passes.waiting = False  # for the gradient of an earlier step, which stopped half-way
        # 1. Lay out: queries and responses side by side, and what the frozen layers make of them.
        batch = self.lay_out(queries, responses, response_masks)
        batch = self.with_trunk_states(batch, self.sampled)
        # 2. Evaluate: what policy, value head and reference say of each token before any update.
        live = self.live_pass(batch)
        evaluation = self.evaluate(batch, live)
        clock.mark("forward_pass")
        # 3. Reward: the score at the last token of a response, the KL penalty at each of them.
        scaled = self.scale(own_scores)
        rewards, penalty = self.rewards(scaled, evaluation)
        clock.mark("compute_rewards")
        # 4. Advantages: how much better each token went than the value head expected.
        advantages, returns = self.advantages(evaluation, rewards)
        experience = Experience(
            **vars(evaluation),
            penalty=penalty,
            rewards=rewards,
            advantages=advantages,
            returns=returns,
        )
        clock.mark("compute_advantages")
        # 5. Optimise: a few updates on this one batch, none of them far.
        minibatches = self.optimise(batch, experience, live)
        clock.mark("optimize_step")
        # 6. Report, and adapt beta and the learning rate for the next step.
        stats = self.report(batch, scaled, experience, minibatches)
        self.adapt(stats["objective/kl"], samples=len(scaled))
        clock.mark("calc_stats")
        stats = with_items(stats | clock.times())
        self.history.append(scalars(stats))
        return stats

    def annotate(self, stats: dict[str, Any], **numbers: float) -> None:
        """Add numbers to the last step's `stats` and to its line of the history."""
        stats |= numbers
        self.history[-1] |= numbers

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: Sequence[float | Tensor],
        columns_to_log: Iterable[str] = ("query", "response"),
    ) -> None:
        """Send a step's stats, and `columns_to_log` of its batch, to the tracker of `log_with`."""
        self.logged += 1
        log_stats(self.accelerator, stats, batch, rewards, columns_to_log, self.logged)

    def save_pretrained(
        self,
        folder: str | Path,
        merge: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **settings: Any,
    ) -> None:
        """Save the policy as an ordinary checkpoint folder, with its value head and tokenizer.

        Of a LoRA policy the adapter is saved, or with `merge=True` an ordinary checkpoint too. The
        other arguments are those of the policy's own `save_pretrained`.
        """
        if self.accelerator.is_main_process:
            self.policy.save_pretrained(folder, merge=merge, **settings)
            self.tokenizer.save_pretrained(folder)
            if push_to_hub:
                upload(folder, repo_id or Path(folder).name)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` saves; `kwargs` as in `models.upload`. Its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **kwargs)

    # The stages of a step -----------------------------------------------------------------------

    def lay_out(
        self,
        queries: list[Tensor],
        responses: list[Tensor],
        response_masks: list[Tensor] | None = None,
    ) -> Batch:
        """Stage 1: this process's batch, as wide as the longest response of all processes."""
        longest = torch.tensor([max(map(len, responses))], device=self.device)
        return collate(
            [query.cpu() for query in queries],
            [response.cpu() for response in responses],
            checks.padding_of(self.tokenizer),
            None if response_masks is None else [mask.cpu() for mask in response_masks],
            width=int(self.rows_of_all(longest).max()),
        ).to(self.device)

    def with_trunk_states(self, batch: Batch, sampled: TrunkStates | None = None) -> Batch:
        """Stage 1: the batch with the frozen layers' states of it, which serve all passes over it.

        Args:
            sampled: what sampling left behind: taken if it is of these tokens and these weights.
        """
        policy = self.policy
        if not policy.num_shared_layers or policy.halves is None:
            return batch
        states = None if sampled is None else sampled.of(*batch.read(), policy.trunk_version())
        if states is None:
            with self.accelerator.autocast():
                states = policy.trunk(*batch.read())
        return replace(batch, trunk_states=states)

    def forward(self, model: torch.nn.Module, batch: Batch) -> ForwardPass:
        """What a model says of the responses, in the trainer's precision: softmax(z / temperature).

        A model that has the policy's frozen trunk goes on from the trunk's states.
        """
        states = batch.trunk_states if model is self.model or self.shares_trunk else None
        with self.accelerator.autocast():
            recorded = self.recorded.get(model)  # on a GPU
            said = recorded(batch, states is not None) if recorded else None
            logits, values = said or said_by(model, batch, states)
        temperature = self.config.temperature
        logprobs, entropy = logprobs_and_entropy(logits, batch.responses, temperature)
        return ForwardPass(logits, logprobs, entropy, values.float(), temperature)

    def live_pass(self, batch: Batch) -> ForwardPass | None:
        """Stage 2: the policy's pass with its gradient, where it can serve the first update too.

        That is so where the mini-batch is the batch: no weight changes in between.
        """
        one_pass = self.config.mini_batch_size == self.config.batch_size
        return self.forward(self.model, batch) if one_pass else None

    @torch.no_grad()
    def evaluate(self, batch: Batch, live: ForwardPass | None = None) -> Evaluation:
        """Stage 2: log-probabilities of policy and reference, values, and the KL between the two.

        Args:
            live: the policy's pass over the whole batch, if there is one already.
        """
        kind, parts = self.config.kl_penalty, []
        for rows in torch.arange(len(batch.mask)).split(self.config.mini_batch_size):
            part = batch[rows.to(self.device, non_blocking=True)]
            policy = live or self.forward(self.model, part)
            reference = self.forward(self.ref_model, part)
            if kind == "full":
                kl = kl_per_token(policy.log_distribution(), reference.log_distribution(), kind)
            else:
                kl = kl_per_token(policy.logprobs, reference.logprobs, kind)
            parts.append((policy.logprobs.detach(), reference.logprobs, policy.values.detach(), kl))
        columns = (self.rows_of_all(torch.cat(column)) for column in zip(*parts, strict=True))
        logprobs, ref_logprobs, values, kl = columns
        mask = self.rows_of_all(batch.mask)
        return Evaluation(mask, logprobs, ref_logprobs, values * mask, kl)

    def scale(self, scores: Tensor) -> Tensor:
        """Stage 3: the scores of all processes, scaled and clipped as the config says, (B,)."""
        config, scores = self.config, self.rows_of_all(scores)
        if config.use_score_scaling:
            self.score_moments = self.score_moments.updated(scores)
            scores = self.score_moments.scaled(scores, config.use_score_norm)
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        return scores

    def rewards(self, scores: Tensor, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        """Stage 3: the rewards of each token, and the part of them that is not the score.

        Args:
            scores: (B,), scaled.

        Returns:
            (B, T) each.
        """
        return rewards_per_token(scores, evaluation.kl, evaluation.mask, self.kl_coef)

    def advantages(self, evaluation: Evaluation, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Stage 4: whitened advantages, and returns, (B, T) each."""
        values, mask = evaluation.values, evaluation.mask
        rewards = rewards * mask
        if self.config.whiten_rewards:
            # Masked again, unlike in TRL: whitening turns the padding's zeros into other numbers,
            # which GAE would carry back into the response, the more the longer the padding.
            rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
        advantages = gae(rewards, values, self.config.gamma, self.config.lam)
        return masked_whiten(advantages, mask), advantages + values

    def optimise(
        self, batch: Batch, experience: Experience, live: ForwardPass | None = None
    ) -> list[dict[str, Tensor]]:
        """Stage 5: the PPO epochs, several updates on one batch, in mini-batches drawn anew.

        Args:
            live: the policy's pass over the whole batch, with its gradient, for the first update.
        """
        config, stats = self.config, []
        replies = self.replies.draw(config, self.random)  # of PPO-ptx
        if replies is not None:
            replies = self.with_trunk_states(replies)
        for _ in range(config.ppo_epochs):
            order = self.permutation(config.batch_size).to(self.device, non_blocking=True)
            for rows in order.split(config.mini_batch_size):
                with self.accelerator.accumulate(self.model):
                    now = live[rows] if live else self.forward(self.model, batch[rows])
                    live = None  # after an update it is the pass of an older policy
                    of_all = indices_of_all(self.accelerator, rows, config.batch_size)
                    part = replies[rows] if replies else None
                    stats.append(self.update(now, experience[of_all], part))
            # The clip alone does not bound how far the epochs move the policy from where it
            # sampled.
            moved = stats[-1]["ppo/policy/policykl"]
            if config.early_stopping and moved > 1.5 * config.target_kl:
                break
        return stats

    def update(
        self, now: ForwardPass, old: Experience, replies: Batch | None = None
    ) -> dict[str, Tensor]:
        """One backward pass, and an update of the weights if enough gradients are accumulated.

        Args:
            now: the policy's pass over this process's rows of the mini-batch.
            old: what was measured before the first update, of the rows of all processes.
            replies: this process's given replies, for PPO-ptx.
        """
        config, mask = self.config, old.mask
        logprobs, values, entropy = map(self.rows_of_all, (now.logprobs, now.values, now.entropy))
        pg_loss, vf_loss, measured = self.losses(logprobs, values, entropy, old)
        ratio = measured["ratio"]
        if checks.ratio_too_large(ratio.detach(), mask, config.ratio_threshold):
            # A loss of 0 made anew: 0 times a loss with an infinite ratio would be nan.
            pg_loss, vf_loss = 0.0 * now.logprobs.sum(), 0.0 * now.values.sum()
        loss, ptx = pg_loss + config.vf_coef * vf_loss, {}
        if replies:
            learnt = self.rows_of_all(self.forward(self.model, replies).logprobs)
            ptx["ppo/loss/ptx"] = language_model_loss(learnt, self.rows_of_all(replies.mask))
            loss = loss + config.ptx_coef * ptx["ppo/loss/ptx"]
        # accelerate averages the gradients of the processes. Each has only the part of its own
        # rows, of a loss over the rows of all: the gradient is their sum.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        if self.accelerator.sync_gradients:
            self.clip_gradient(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {k: v.detach() for k, v in ptx.items()} | minibatch_stats(
            policy_loss=pg_loss.detach(),
            value_loss=vf_loss.detach(),
            total_loss=loss.detach(),
            logprobs=logprobs,
            values=values,
            entropy=entropy,
            old=old,
            **{name: tensor.detach() for name, tensor in measured.items()},
        )

    def losses(
        self, logprobs: Tensor, values: Tensor, entropy: Tensor, old: Experience
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Stage 5: the losses of a mini-batch, over the rows of all processes.

        Args:
            logprobs, values, entropy: (B, T), of the policy in this pass, with their gradient.
            old: the same rows before the first update.

        Returns:
            The policy's loss, the value head's (of which `vf_coef` is taken), and what is reported:
            the ratio, (B, T), and the shares of tokens that the two clips changed.
        """
        config, mask = self.config, old.mask
        pg_loss, ratio, policy_clipfrac = policy_loss(
            logprobs, old.logprobs, old.advantages, mask, config.cliprange
        )
        vf_loss, value_clipfrac = value_loss(
            values, old.values, old.returns, mask, config.cliprange_value
        )
        clipped = {"policy_clipfrac": policy_clipfrac, "value_clipfrac": value_clipfrac}
        return pg_loss, vf_loss, {"ratio": ratio, **clipped}

    def clip_gradient(self, loss: Tensor) -> None:
        """Clip the gradient's norm to `config.max_grad_norm`, if any.

        Raises:
            TrainingError: where the norm is not finite, before any weight has changed.
        """
        self.accelerator.unscale_gradients()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        if not norm.isfinite() and self.accelerator.scaler is None:  # a scaler skips the update
            self.optimizer.zero_grad()
            raise checks.update_refused(loss, norm, step=len(self.history) + 1)
        if (largest := self.config.max_grad_norm) is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, largest, norm)

    def permutation(self, n: int) -> Tensor:
        """The order in which the rows of a batch are taken, (n,)."""
        return torch.randperm(n, generator=self.random)

    def report(
        self,
        batch: Batch,
        scores: Tensor,
        experience: Experience,
        minibatches: list[dict[str, Tensor]],
    ) -> dict[str, Any]:
        """Stage 6: the numbers of the step, but for its times."""
        query_lengths, response_lengths = self.rows_of_all(batch.lengths).unbind(dim=1)
        stats = step_stats(
            scores=scores,
            experience=experience,
            kl_coef=self.kl_coef,
            query_lengths=query_lengths,
            response_lengths=response_lengths,
            minibatches=minibatches,
        )
        return stats | {"ppo/learning_rate": self.optimizer.param_groups[0]["lr"]}

    def adapt(self, kl: float, samples: int) -> None:
        """Stage 6: beta after a step of so many samples at this KL, and the learning rate."""
        config = self.config
        if config.adap_kl_ctrl:
            self.kl_coef = adapted_kl_coef(self.kl_coef, kl, config.target, samples, config.horizon)
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

    # Saving and going on ------------------------------------------------------------------------

    def save_checkpoint(self, folder: str | Path) -> None:
        """Save all that training needs to go on from here: see `checkpoint.save`.

        With several processes all call this, and the first one writes: they hold the same state.

        Raises:
            CheckpointError: if it cannot be written; earlier ones are left as they are.
        """
        if self.accelerator.is_main_process:
            checkpoint.save(folder, len(self.history), self.state_dict())
        self.accelerator.wait_for_everyone()

    def resume(self, folder: str | Path) -> int:
        """Go on where the newest intact checkpoint of this run left off; the steps done.

        The trainer must have been made as the interrupted one was, from the policy before training.
        Without a checkpoint in the folder, nothing is done, and the result is 0.

        Raises:
            CheckpointError: if there are checkpoints, and none of them fits.
        """
        restored = checkpoint.restore_newest(folder, self.load_state_dict)
        return len(self.history) if restored else 0

    def state_dict(self) -> dict[str, Any]:
        """All that training goes on from: what of `run`, the trained weights, and every counter."""
        scheduler, loader = self.lr_scheduler, self.dataloader
        scaler = self.accelerator.scaler  # None but for float16
        return {
            "run": self.identity(),
            "policy": {name: p.detach() for name, p in self.trained_parameters().items()},
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": None if scheduler is None else scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": self.random.get_state(),
            "position": None if loader is None else loader.position,
            "kl_coef": self.kl_coef,
            "score_moments": asdict(self.score_moments),
            "logged": self.logged,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave of a run like this one.

        Raises:
            CheckpointError: for a state of another run or model, before anything has changed.
        """
        if (other := difference(self.identity(), state["run"])) is not None:
            raise CheckpointError(f"it is of another run: {other}")
        parameters = self.trained_parameters()
        here = {name: tuple(p.shape) for name, p in parameters.items()}
        there = {name: tuple(t.shape) for name, t in state["policy"].items()}
        if differing := sorted(dict(here.items() ^ there.items())):
            raise CheckpointError(f"it is of another model: policy.{differing[0]} does not fit")
        if self.dataloader is not None and state["position"] is not None:
            self.dataloader.go_to(*state["position"])
        self.model.zero_grad()  # an interrupted step may have left some
        self.accelerator.step = 0
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state["policy"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.random.set_state(state["random"])
        self.kl_coef, self.logged = state["kl_coef"], state["logged"]
        self.score_moments = RunningMoments(**state["score_moments"])
        self.history, self.sampled = state["history"], None

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Those of the policy and its value head that are not frozen, by name."""
        return {name: p for name, p in self.policy.named_parameters() if p.requires_grad}

    def identity(self) -> dict[str, Any]:
        """What tells this run from another: see `identity.identity`."""
        return identity(
            self.config,
            self.optimizer,
            self.lr_scheduler,
            processes=self.accelerator.num_processes,
            precision=self.accelerator.mixed_precision,
            num_shared_layers=self.policy.num_shared_layers,
            model=self.origin,
            rows=None if self.dataloader is None else len(self.dataloader.dataset),
            prompts=self.prompts,
            adapter=lora.settings(self.policy.pretrained_model),
        )

    @cached_property
    def origin(self) -> str:
        """A hash of what the training starts from: the reference, and what is frozen."""
        return fingerprint(self.ref_model, self.model)

    @cached_property
    def prompts(self) -> str | None:
        """A hash of what the training asks, with template and system message."""
        loader = self.dataloader
        return None if loader is None else fingerprint_of_prompts(loader.dataset)
