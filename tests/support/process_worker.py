"""The cases of tests/ppo/test_processes.py: the same code in one process, and by torchrun in two.

    PYTHONPATH=tests torchrun --standalone --nproc_per_node 2 -m support.process_worker FOLDER

leaves what the cases return in FOLDER/rank0.safetensors and rank1.safetensors.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from rlhf_tutorial.errors import TrainingError
from rlhf_tutorial.models import create_reference_model
from rlhf_tutorial.ppo import PPOTrainer
from rlhf_tutorial.ppo import trainer as trainer_module
from support import trainers
from support.models import VOCABULARY, lora_policy, move_adapter
from support.tokenizers import PadAndEnd
from support.trainers import forget_accelerate

PROCESSES, BATCH = 2, 16
HANGS_AFTER = 100  # seconds

# Responses of very different lengths; the longest of the second process has 5 tokens, not 12.
QUERIES = (3, 7, 1, 5, 4, 2, 6, 3, 2, 2, 4, 1, 3, 5, 2, 4)
RESPONSES = (12, 1, 9, 2, 11, 7, 12, 3, 1, 2, 1, 5, 1, 1, 3, 1)

Result = dict[str, Tensor]


class Signing(PadAndEnd):
    """A tokenizer whose saving shows which process saved it."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / f"saved-by-{world()[1]}").touch()


def world() -> tuple[int, int]:
    """Processes, and the number of this one."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def share(rows: list[Any]) -> list[Any]:
    """This process's part of the rows of all."""
    processes, rank = world()
    size = len(rows) // processes
    return rows[rank * size : (rank + 1) * size]


def sixteen(seed: int = 0) -> tuple[list[Tensor], list[Tensor], list[float], list[Tensor]]:
    """Queries, responses, scores and response masks of a global batch."""
    random = torch.Generator().manual_seed(seed)

    def ids(lengths: tuple[int, ...]) -> list[Tensor]:
        return [torch.randint(3, VOCABULARY, (n,), generator=random) for n in lengths]

    queries, responses = ids(QUERIES), ids(RESPONSES)
    # The second process's scores are lower, so that its own moments are others than those of all.
    scores = torch.randn(BATCH, generator=random) - torch.arange(BATCH) / 4
    masks = [torch.rand(n, generator=random).lt(0.7).long() for n in RESPONSES]
    for mask in masks:
        mask[0] = 1
    return queries, responses, scores.tolist(), masks


def dataset(rows: int = 53) -> list[dict[str, Any]]:
    random = torch.Generator().manual_seed(1)
    return [
        {"row": i, "input_ids": torch.randint(3, VOCABULARY, (1 + i % 7,), generator=random)}
        for i in range(rows)
    ]


def replies() -> list[tuple[Tensor, Tensor]]:
    """For PPO-ptx: contexts and replies of mixed lengths."""
    random = torch.Generator().manual_seed(9)

    def ids(n: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (n,), generator=random)

    return [(ids(1 + i % 4), ids(1 + i % 7)) for i in range(40)]


def make_trainer(
    adam: bool = False,
    lr: float = 0.02,
    mini_batch: int = BATCH,
    precision: str = "no",
    rows: list[dict[str, Any]] | None = None,
    lora: bool = False,
    **settings: Any,
) -> PPOTrainer:
    """A trainer of this process. `mini_batch` counts the rows of all processes.

    With `lora` the policy is an adapter that was trained before, and has moved on since the
    reference was made.
    """
    forget_accelerate()  # the precision and accumulation of the case before
    processes, _ = world()
    kind_of_optimizer = torch.optim.Adam if adam else torch.optim.SGD
    if lora:
        settings["policy"] = policy = lora_policy(trained=0.1)
        settings["reference"] = create_reference_model(policy)
        move_adapter(policy, 0.02, seed=1)
    else:
        settings["other"] = 1
    trainer = trainers.make_trainer(
        optimizer=lambda trained: kind_of_optimizer(trained, lr=lr),
        tokenizer=Signing(),
        dataset=rows,
        ptx_dataset=replies() if settings.get("ptx_coef") else (),
        batch_size=BATCH // processes,
        mini_batch_size=mini_batch // processes,
        accelerator_kwargs={"cpu": True, "mixed_precision": precision},
        **settings,
    )
    if processes == 1:
        trainer.permutation = lambda n: as_two_processes(trainer.random, n, mini_batch)
    return trainer


def as_two_processes(random: torch.Generator, n: int, mini_batch: int) -> Tensor:
    """The order in which two processes with half the rows each take all of them."""
    own = torch.randperm(n // PROCESSES, generator=random)
    parts = own.split(mini_batch // PROCESSES)
    return torch.cat([rows + i * n // PROCESSES for rows in parts for i in range(PROCESSES)])


def step(trainer: PPOTrainer, seed: int = 0, masked: bool = False) -> Result:
    """A step on this process's share of `sixteen`: its stats, but for the times."""
    queries, responses, scores, masks = map(share, sixteen(seed))
    stats = trainer.step(queries, responses, scores, masks if masked else None)
    stats = {k: v for k, v in stats.items() if not k.startswith("time/")}
    return {k: torch.as_tensor(v, dtype=torch.double) for k, v in stats.items()}


def weights(trainer: PPOTrainer) -> Result:
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {f"weights/{k}": v.detach().clone() for k, v in model.state_dict().items()}


def state(trainer: PPOTrainer) -> Result:
    """All that goes on from step to step, but for the history."""
    moments, numbers = trainer.score_moments, {}
    for index, items in trainer.optimizer.state_dict()["state"].items():
        numbers |= {f"optimizer/{index}/{k}": v.clone() for k, v in items.items()}
    numbers["kl_coef"] = torch.tensor(trainer.kl_coef, dtype=torch.double)
    numbers["score_moments"] = torch.tensor([moments.mean, moments.var, moments.count]).double()
    numbers["random"] = trainer.random.get_state().clone()
    if trainer.dataloader is not None:
        numbers["position"] = torch.tensor(trainer.dataloader.position)
    return weights(trainer) | numbers


def prefixed(prefix: str, result: Result) -> Result:
    return {f"{prefix}/{k}": v for k, v in result.items()}


# 1. Steps that must be those of one process ---------------------------------------------------

EVERYTHING = {
    "steps": 3,
    "whiten_rewards": True,
    "use_score_scaling": True,
    "use_score_norm": True,
    "score_clip": 1.5,
    "target": 1.0,
    "horizon": 100,
    "max_grad_norm": 0.5,
}
ACCUMULATION = {"mini_batch": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}
STEPS: dict[str, dict[str, Any]] = {
    "full": {},
    "trunk": {"shared": 2},
    "full, whitening, score scaling and norm, adaptive KL, clipping": EVERYTHING,
    "trunk, whitening, score scaling and norm, adaptive KL, clipping": EVERYTHING | {"shared": 2},
    "full, Adam": EVERYTHING | {"adam": True, "lr": 1e-3},
    "full, mini-batches, masks, all of the KL": {
        "mini_batch": 8,
        "masked": True,
        "kl_penalty": "full",
        "adap_kl_ctrl": False,
    },
    "trunk, mini-batches, masks, squared KL": {
        "mini_batch": 4,
        "masked": True,
        "kl_penalty": "mse",
        "shared": 2,
    },
    "full, accumulation": ACCUMULATION,
    "trunk, accumulation": ACCUMULATION | {"shared": 2, "steps": 2},
    "full, PPO-ptx": {"ptx_coef": 0.5, "mini_batch": 8, "max_grad_norm": 0.5},
    "trunk, PPO-ptx": {"ptx_coef": 0.5, "shared": 2, "steps": 2},
    "GPT-2, learned positions and tied head": EVERYTHING | {"kind": "gpt2", "mini_batch": 8},
    "LoRA": EVERYTHING | {"lora": True, "mini_batch": 8, "lr": 0.1},
}


def steps(settings: dict[str, Any]) -> Result:
    settings = {"ppo_epochs": 2, "steps": 1, "masked": False} | settings
    n, masked = settings.pop("steps"), settings.pop("masked")
    trainer, result = make_trainer(**settings), {}
    for i in range(n):
        result |= prefixed(f"step{i}", step(trainer, seed=i, masked=masked))
    return result | state(trainer)


def in_bfloat16() -> Result:
    """As on a GPU: autocast, and the frozen trunk stored in bfloat16."""
    return steps(EVERYTHING | {"shared": 2, "precision": "bf16", "lr": 0.005})


# What would be wrong, to see that the comparison notices ----------------------------------------


def own_rows(tensors: tuple[Any, ...]) -> list[Any]:
    processes, rank = world()
    return [t.chunk(processes)[rank] if isinstance(t, Tensor) else t for t in tensors]


def local_mean(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The mean over this process's tokens, which DDP would average: a mean of local means."""

    def planted(*tensors: Any) -> tuple[Any, ...]:
        return loss(*own_rows(tensors))[0] / world()[0], *loss(*tensors)[1:]

    return planted


def local_whiten(values: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    from rlhf_tutorial.ppo.math import masked_whiten

    parts = zip(values.chunk(world()[0]), mask.chunk(world()[0]), strict=True)
    return torch.cat([masked_whiten(*part, **settings) for part in parts])


@contextmanager
def planted(fault: str) -> Any:
    patch = mock.patch.object
    if fault == "mean of local means":
        policy, value = trainer_module.policy_loss, trainer_module.value_loss
        with (
            patch(trainer_module, "policy_loss", local_mean(policy)),
            patch(trainer_module, "value_loss", local_mean(value)),
        ):
            yield
    elif fault == "local whitening":
        with patch(trainer_module, "masked_whiten", local_whiten):
            yield
    elif fault == "averaged gradients":
        from accelerate import Accelerator

        backward = Accelerator.backward
        with patch(Accelerator, "backward", lambda self, loss: backward(self, loss / PROCESSES)):
            yield
    elif fault == "submodule called directly":
        forward = trainer_module.PPOTrainer.forward

        def unwrapped(self: PPOTrainer, model: nn.Module, batch: Any) -> Any:
            return forward(self, self.accelerator.unwrap_model(model), batch)

        with patch(trainer_module.PPOTrainer, "forward", unwrapped):
            yield
    else:
        raise KeyError(fault)


PLANTED = (
    "mean of local means",
    "local whitening",
    "averaged gradients",
    "submodule called directly",
)

# 2. Decisions taken together -------------------------------------------------------------------


def unshuffled(**settings: Any) -> PPOTrainer:
    """With mini-batches in the order of the rows, so that ratios and mask belong together."""
    trainer = make_trainer(**settings)
    trainer.permutation = torch.arange
    return trainer


def second_pass(trainer: PPOTrainer) -> tuple[Tensor, Tensor]:
    """Log-ratios and mask of the pass after the first update, (B, T) each."""
    stats = step(trainer)
    mask = stats["objective/mask"]
    return stats["ppo/policy/ratio"].view(2, *mask.shape)[1].log(), mask


def means(values: Tensor, mask: Tensor) -> Tensor:
    """Of all rows, and of each process's rows: the smaller one, then the larger one."""
    parts = zip(values.chunk(PROCESSES), mask.chunk(PROCESSES), strict=True)
    local = sorted((v * m).sum() / m.sum() for v, m in parts)
    return torch.stack([(values * mask).sum() / mask.sum(), *local])


def skipping() -> Result:
    """The mean ratio of all is below the threshold, or above; one process's own is not."""
    once = unshuffled(ppo_epochs=1)
    step(once)
    twice = unshuffled(ppo_epochs=2)
    log_ratio, mask = second_pass(twice)
    of_all, lower, upper = found = means(log_ratio.exp(), mask)
    result = {"means": found}
    result |= prefixed("once", weights(once)) | prefixed("twice", weights(twice))
    for name, own in (("kept", upper), ("skipped", lower.clamp(min=1))):
        trainer = unshuffled(ppo_epochs=2, ratio_threshold=((of_all + own) / 2).item())
        result |= prefixed(name, step(trainer) | weights(trainer))
    return result


def stopping() -> Result:
    """The movement of all is below what stops an epoch, or above; one process's own is not."""
    lr = 0.3  # large enough for the movement of all to be positive
    log_ratio, mask = second_pass(unshuffled(lr=lr, ppo_epochs=2))
    of_all, lower, upper = found = means(-log_ratio, mask)
    result = {"means": found}
    for name, own in (("goes on", upper), ("stops", lower.clamp(min=0))):
        target = ((of_all + own) / 2 / 1.5).item()
        trainer = unshuffled(lr=lr, ppo_epochs=3, early_stopping=True, target_kl=target)
        stats = step(trainer)
        result |= prefixed(name, stats | weights(trainer))
        passes = stats["ppo/policy/ratio"].numel() // mask.numel()
        result[f"{name}/passes"] = torch.tensor(passes)
    return result


def refusing(shared: int | None) -> Result:
    """A gradient that is not finite in the last process only; the next step is sound."""
    trainer = make_trainer(shared=shared)
    processes, rank = world()
    result = prefixed("before", weights(trainer))
    result["refused"] = torch.tensor(0)
    handle = None
    if rank == processes - 1:
        handle = trainer.accelerator.unwrap_model(trainer.model).v_head.weight.register_hook(
            lambda gradient: gradient * torch.nan
        )
    try:
        step(trainer)
    except TrainingError as error:
        result["refused"] += "update refused in step 1" in str(error)
    result |= prefixed("after", weights(trainer))
    if handle is not None:
        handle.remove()
    return result | step(trainer, seed=1) | state(trainer)


# 3. Whole steps ----------------------------------------------------------------------------------


def training(shared: int | None) -> Result:
    """Generate, score, step; two passes' worth of batches, and what was drawn."""
    trainer, result = make_trainer(shared=shared, mini_batch=8, rows=dataset(37)), {}
    batches = itertools.chain(trainer.dataloader, trainer.dataloader)
    for i, batch in enumerate(batches):
        queries = batch["input_ids"]
        responses = trainer.generate(queries, return_prompt=False, max_new_tokens=6)
        scores = [r.float().mean() / 100 - (i % 3) for i, r in enumerate(responses)]
        trainer.step(queries, responses, scores)
        result[f"rows{i}"] = torch.tensor(batch["row"])
    same = [torch.tensor([5, 6, 7])] * 8
    answers = trainer.generate(same, return_prompt=False, max_new_tokens=8, eos_token_id=-1)
    result["answers"] = torch.stack(answers)
    return result | state(trainer)


def drawing_alone() -> Result:
    """The first process samples once more than the others: its script looks at an answer."""
    trainer = make_trainer(ppo_epochs=1, mini_batch=4)
    if world()[1] == 0:
        trainer.generate(torch.tensor([5, 6, 7]), max_new_tokens=3)
    stats = step(trainer)
    return stats | weights(trainer)


def publishing(folder: Path) -> Result:
    """Every process calls `save_pretrained`, as a script written for one process does."""
    trainer = make_trainer()
    trainer.save_pretrained(folder)
    return weights(trainer)


# 4. Checkpoints ----------------------------------------------------------------------------------

CHECKPOINT = {
    "adam": True,
    "lr": 1e-3,
    "target": 1.0,
    "horizon": 100,
    "use_score_scaling": True,
    "ppo_epochs": 2,
}


def next_step(trainer: PPOTrainer) -> Result:
    """The rows that come next, and a step."""
    rows = torch.tensor(next(iter(trainer.dataloader))["row"])
    return prefixed("next", {"rows": rows} | step(trainer, seed=2) | state(trainer))


def saving(folder: Path) -> Result:
    """Two steps, a checkpoint, and the step after it."""
    trainer = make_trainer(rows=dataset(), **CHECKPOINT)
    for i, _ in enumerate(itertools.islice(trainer.dataloader, 2)):
        step(trainer, seed=i)
    trainer.save_checkpoint(folder)
    saved = state(trainer)
    trainer.dataloader.go_to(*trainer.dataloader.position)  # a new iterator takes up from here
    return saved | next_step(trainer)


def resuming(folder: Path) -> Result:
    """The step after a checkpoint that another number of processes saved."""
    trainer = make_trainer(rows=dataset(), **CHECKPOINT)
    done = torch.tensor(trainer.resume(folder))
    return {"done": done} | state(trainer) | next_step(trainer)


# -------------------------------------------------------------------------------------------------


def connection() -> Result:
    trainer = make_trainer()
    wrapped = isinstance(trainer.model, nn.parallel.DistributedDataParallel)
    numbers = {
        "accelerate": trainer.accelerator.num_processes,
        "torch": torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1,
        "wrapped": int(wrapped),
        "process": os.getpid(),
    }
    return {k: torch.tensor(v) for k, v in numbers.items()}


CASES: dict[str, Callable[[Path], Result]] = {"connection": lambda _: connection()}
CASES |= {name: lambda _, s=settings: steps(s) for name, settings in STEPS.items()}
CASES |= {
    "bfloat16": lambda _: in_bfloat16(),
    "skipping": lambda _: skipping(),
    "stopping": lambda _: stopping(),
    "refusing, full": lambda _: refusing(None),
    "refusing, trunk": lambda _: refusing(2),
    "training, full": lambda _: training(None),
    "training, trunk": lambda _: training(2),
    "drawing alone": lambda _: drawing_alone(),
    "publishing": lambda folder: publishing(folder / f"policy-of-{world()[0]}"),
    "saving": lambda folder: saving(folder / f"of-{world()[0]}"),
    "resuming": lambda folder: resuming(folder / f"of-{3 - world()[0]}"),
}


def main(folder: Path) -> None:
    """All cases, and two of them again with each planted fault."""
    from safetensors.torch import save_file

    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    results = {}
    for name, case in CASES.items():
        results |= prefixed(name, case(folder))
    for fault in PLANTED:
        for name in ("full", "trunk"):
            with planted(fault):
                results |= prefixed(f"{fault}, {name}", CASES[name](folder))
    path = folder / f"rank{world()[1]}.safetensors"
    save_file({k: v.detach().clone().contiguous() for k, v in results.items()}, path)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
