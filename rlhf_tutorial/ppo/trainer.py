"""The PPO trainer: generate, score (yours), step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models import (
    AutoModelForCausalLMWithValueHead,
    cast_frozen_matrices,
    create_reference_model,
    shares_trunk,
    upload,
)
from . import checkpoint, checks
from .batches import Batches, Replies, collate_columns
from .config import PPOConfig
from .gradient import clip_gradient
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
from .processes import everywhere, make_accelerator, prepare, rows_everywhere
from .rollout import Batch, Experience, Outputs, collate, generate_responses
from .stats import Clock, minibatch_stats, scalars, step_stats
from .token_stats import logprobs_and_entropy
from .trackers import log_stats

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


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

    Attributes:
        dataloader: batches of the dataset as dicts of lists, shuffled, the last short one dropped;
            None without a dataset.
        kl_coef: beta, the current weight of the KL penalty.
        history: the numbers of each step so far.
    """

    def __init__(
        self,
        config: PPOConfig,
        model: AutoModelForCausalLMWithValueHead,
        ref_model: AutoModelForCausalLMWithValueHead | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dataset: Dataset | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, list[Any]]] = collate_columns,
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
            data_collator: makes a batch of rows; by default a dict of lists.
            lr_scheduler: of `optimizer`, moved on once per `step`.
            training_data_collator: refused; TRL had it.
            ptx_dataset: for `config.ptx_coef`: token ids of contexts, and of the replies to them.
        """
        checks.check_arguments(
            model, ref_model, tokenizer, num_shared_layers, training_data_collator, ptx_dataset
        )
        self.config, self.model_config, self.tokenizer = config, model.config, tokenizer
        self.kl_coef, self.logged, self.score_moments = config.init_kl_coef, 0, RunningMoments()
        self.history: list[dict[str, float]] = []
        self.random = torch.Generator().manual_seed(config.seed)
        self.accelerator = make_accelerator(config)
        self._everywhere = partial(everywhere, self.accelerator)
        if ref_model is None:
            ref_model = create_reference_model(model, num_shared_layers)
        self.shares_trunk = shares_trunk(model, ref_model)
        if self.accelerator.mixed_precision == "bf16":
            cast_frozen_matrices(model, ref_model)
        if optimizer is None:
            trainable = [p for p in model.parameters() if p.requires_grad]
            fused = self.device.type in ("cpu", "cuda")  # one pass over the weights, not a dozen
            optimizer = torch.optim.Adam(trainable, lr=config.learning_rate, fused=fused)
        self.replies = Replies(ptx_dataset, config, self.accelerator, tokenizer.pad_token_id)
        self.dataloader = None
        if dataset is not None:
            self.dataloader = Batches(dataset, config, data_collator, self.accelerator)
        self.model, self.optimizer = prepare(self.accelerator, model.eval(), optimizer)
        self.ref_model = ref_model.to(self.device).eval()
        self.lr_scheduler = lr_scheduler

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.accelerator.device

    # 1. Sample responses ---------------------------------------------------------------------

    def generate(
        self,
        query_tensor: Tensor | Sequence[Tensor],
        length_sampler: Callable[[], int] | None = None,
        batch_size: int | None = None,
        return_prompt: bool = True,
        generate_ref_response: bool = False,
        **generation_kwargs: Any,
    ) -> Tensor | list[Tensor] | tuple:
        """Sample a response to each query from the policy.

        Args:
            query_tensor: one 1-d tensor of token ids, or a list of them.
            length_sampler: draws `max_new_tokens`. batch_size: queries at a time; all by default.
            return_prompt: whether the query's tokens come first in what is returned.
            generate_ref_response: return a pair, the policy's responses and the reference's.
            generation_kwargs: for `transformers`' generate. Unless they say otherwise, sampling is
                pure: temperature 1, no top-k, no top-p.

        Returns:
            For a list, a list of 1-d tensors; for one query a (1, length) tensor, as in TRL.
        """
        single = isinstance(query_tensor, Tensor)
        queries = [query_tensor] if single else list(query_tensor)
        checks.check_tokens(self.model_config, queries=queries)
        queries = [q.to(self.device) for q in queries]
        settings = {
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
            "batch_size": batch_size,
            "length_sampler": length_sampler,
            **generation_kwargs,
        }
        gpus = range(torch.cuda.device_count())  # manual_seed seeds all of them
        results = []
        for model in [self.model, self.ref_model] if generate_ref_response else [self.model]:
            with torch.random.fork_rng(devices=gpus), self.accelerator.autocast():
                # The generators of all processes are in one state: the index tells them apart.
                seed = int(torch.randint(2**31, (), generator=self.random))
                torch.manual_seed(seed + self.accelerator.process_index)
                model = self.accelerator.unwrap_model(model)
                responses = generate_responses(model, queries, **settings)
            if return_prompt:
                responses = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
            results.append(responses[0].unsqueeze(0) if single else responses)
        return tuple(results) if generate_ref_response else results[0]

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
        config, clock = self.config, Clock()
        checks.check_sizes(config.batch_size, queries=queries, responses=responses, scores=scores)
        checks.check_tokens(self.model_config, queries=queries, responses=responses)
        lengths = torch.tensor([[len(q), len(r)] for q, r in zip(queries, responses, strict=True)])
        query_lengths, response_lengths = self._everywhere(lengths.to(self.device)).unbind(1)
        batch = collate(
            [q.to(self.device) for q in queries],
            [r.to(self.device) for r in responses],
            self.tokenizer.pad_token_id,
            response_masks,
            width=int(response_lengths.max()),
        )
        scores = self._everywhere(checks.scores_tensor(scores, self.device))
        if config.use_score_scaling:
            self.score_moments = self.score_moments.updated(scores)
            scores = self.score_moments.scaled(scores, config.use_score_norm)
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        batch = self._with_trunk_states(batch)
        # Where the mini-batch is the batch, this pass is also that of the first update.
        one_pass = config.mini_batch_size == config.batch_size
        first = self._forward(self.model, batch) if one_pass else None
        # From here on of all processes, but for `batch` and `first`.
        mask = self._everywhere(batch.mask)
        logprobs, ref_logprobs, values, kl = map(self._everywhere, self._evaluate(batch, first))
        clock.mark("forward_pass")
        rewards, penalty = rewards_per_token(scores, kl, mask, self.kl_coef)
        clock.mark("compute_rewards")
        values, advantages, returns = self._advantages(values, rewards, mask)
        clock.mark("compute_advantages")
        experience = Experience(
            mask, logprobs, ref_logprobs, values, kl, penalty, rewards, advantages, returns
        )
        replies = self._with_trunk_states(self.replies.draw(self.random))
        minibatches = self._optimise(batch, experience, first, replies)
        clock.mark("optimize_step")
        stats = step_stats(
            scores=scores,
            experience=experience,
            kl_coef=self.kl_coef,
            query_lengths=query_lengths,
            response_lengths=response_lengths,
            minibatches=minibatches,
        )
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        if config.adap_kl_ctrl:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, stats["objective/kl"], config.target, len(scores), config.horizon
            )
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        clock.mark("calc_stats")
        stats |= clock.times()
        self.history.append(scalars(stats))
        return stats

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

    def save_pretrained(self, folder: str) -> None:
        """Save the policy as an ordinary checkpoint folder, with its value head and tokenizer."""
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(self.model).save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def save_checkpoint(self, folder: str) -> None:
        """Save all that training needs to go on from here: see `checkpoint.save`."""
        checkpoint.save(self, folder)

    def resume(self, folder: str) -> int:
        """Go on from a folder's newest intact checkpoint; the steps done: `checkpoint.resume`."""
        return checkpoint.resume(self, folder)

    @cached_property
    def origin(self) -> str:
        """A hash of what the training starts from: the reference, and what is frozen."""
        return checkpoint.fingerprint(self.ref_model, self.model)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` saves; `kwargs` as in `models.upload`. Its address."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(folder, repo_id, **kwargs)

    # What a step is made of --------------------------------------------------------------------

    def _with_trunk_states(self, batch: Batch | None) -> Batch | None:
        """With the frozen layers' output, for all passes over this batch; as it is without them."""
        model = self.accelerator.unwrap_model(self.model)
        if batch is None or not model.num_shared_layers:
            return batch
        with self.accelerator.autocast():
            return replace(batch, trunk_states=model.trunk(*batch.read()))

    def _forward(self, model: torch.nn.Module, batch: Batch) -> Outputs:
        """What a model says of the responses; from the trunk's states if it has that trunk."""
        input_ids, *positions = batch.read()
        inputs = {"logits_to_keep": batch.predicting}
        if batch.trunk_states is not None and (model is self.model or self.shares_trunk):
            input_ids, inputs["trunk_states"] = None, batch.trunk_states
        with self.accelerator.autocast():
            logits, _, values = model(input_ids, *positions, **inputs)
        logprobs, entropy = logprobs_and_entropy(logits, batch.responses)
        return Outputs(logits, logprobs, entropy, values.float())

    @torch.no_grad()
    def _evaluate(self, batch: Batch, first: Outputs | None) -> Iterable[Tensor]:
        """Log-probabilities of policy and reference, values, KL before any update, (B, T) each."""
        kind, parts = self.config.kl_penalty, []
        for rows in torch.arange(len(batch.mask)).split(self.config.mini_batch_size):
            part = batch[rows.to(self.device)]
            policy = first or self._forward(self.model, part)
            reference = self._forward(self.ref_model, part)
            if kind == "full":
                both = (o.logits.float().log_softmax(-1) for o in (policy, reference))
                kl = kl_per_token(*both, kind)
            else:
                kl = kl_per_token(policy.logprobs, reference.logprobs, kind)
            parts.append((policy.logprobs.detach(), reference.logprobs, policy.values.detach(), kl))
        return map(torch.cat, zip(*parts, strict=True))

    def _advantages(self, values: Tensor, rewards: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Masked values, whitened advantages, and returns, (B, T) each."""
        values, rewards = values * mask, rewards * mask
        if self.config.whiten_rewards:
            # Masked again: TRL leaves what whitening made of the padding's zeros, and GAE would
            # carry that back into the response, the more the longer the padding.
            rewards = masked_whiten(rewards, mask, shift_mean=False) * mask
        advantages = gae(rewards, values, self.config.gamma, self.config.lam)
        return values, masked_whiten(advantages, mask), advantages + values

    def _optimise(
        self, batch: Batch, experience: Experience, first: Outputs | None, replies: Batch | None
    ) -> list[dict[str, Tensor]]:
        """The PPO epochs: several updates on the same batch, in mini-batches drawn anew."""
        config, stats = self.config, []
        for _ in range(config.ppo_epochs):
            order = self._permutation(config.batch_size).to(self.device)
            for rows in order.split(config.mini_batch_size):
                with self.accelerator.accumulate(self.model):
                    now = first[rows] if first else self._forward(self.model, batch[rows])
                    first = None  # its pass is used up
                    of_all = rows_everywhere(self.accelerator, rows, config.batch_size)
                    part = replies[rows] if replies else None
                    stats.append(self._update(now, experience[of_all], part))
            # Skipping the rest of the epochs once the policy has moved too far from where it
            # sampled: the clip alone does not bound that.
            moved = stats[-1]["ppo/policy/policykl"]
            if config.early_stopping and moved > 1.5 * config.target_kl:
                break
        return stats

    def _update(self, now: Outputs, old: Experience, replies: Batch | None) -> dict[str, Tensor]:
        """One backward pass, and an update if enough gradients have been accumulated.

        Of the mini-batch, `now` and `replies` have this process's rows, and `old` those of all.
        """
        config, mask = self.config, old.mask
        logprobs, values, entropy = map(self._everywhere, (now.logprobs, now.values, now.entropy))
        pg_loss, ratio, policy_clipfrac = policy_loss(
            logprobs, old.logprobs, old.advantages, mask, config.cliprange
        )
        vf_loss, value_clipfrac = value_loss(
            values, old.values, old.returns, mask, config.cliprange_value
        )
        if checks.ratio_too_large(ratio.detach(), mask, config.ratio_threshold):
            # Not the losses times 0: an infinite ratio would make the gradient nan.
            pg_loss, vf_loss = 0.0 * now.logprobs.sum(), 0.0 * now.values.sum()
        loss, ptx = pg_loss + config.vf_coef * vf_loss, {}
        if replies:
            of_all = self._forward(self.model, replies).logprobs, replies.mask
            ptx["ppo/loss/ptx"] = language_model_loss(*map(self._everywhere, of_all))
            loss = loss + config.ptx_coef * ptx["ppo/loss/ptx"]
        # The gradients of the processes are averaged; of this loss they are to be added.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        if self.accelerator.sync_gradients:
            clip_gradient(self, loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {k: v.detach() for k, v in ptx.items()} | minibatch_stats(
            policy_loss=pg_loss.detach(),
            value_loss=vf_loss.detach(),
            total_loss=loss.detach(),
            policy_clipfrac=policy_clipfrac,
            value_clipfrac=value_clipfrac,
            ratio=ratio.detach(),
            now=Outputs(None, logprobs, entropy, values),
            old=old,
        )

    def _permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.random)
