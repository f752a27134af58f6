"""The queries in shuffled batches and the replies of PPO-ptx, a share for every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from ..errors import CheckpointError, DataError, ModelError
from .config import PPOConfig
from .rollout import Batch
from .rollout import collate as lay_out

if TYPE_CHECKING:
    from accelerate import Accelerator


class Batches:
    """Passes over a dataset in an order that follows from the seed and the number of the pass.

    Nothing else is needed to go on where an earlier run stopped: see `position` and `go_to`. A pass
    that was left before its end is gone on with. A last batch that would be short is left out;
    which rows those are differs from pass to pass.

    Attributes:
        epoch: passes completed.
    """

    def __init__(
        self,
        dataset: Any,
        config: PPOConfig,
        collate: Callable[[list[Any]], Any],
        accelerator: Accelerator,
    ) -> None:
        """
        Args:
            config: its batch_size (rows per batch and process), seed, and remove_unused_columns.
        """
        self.dataset = used_columns(dataset) if config.remove_unused_columns else dataset
        self.batch_size, self.seed = config.batch_size, config.seed
        self.collate, self.accelerator = collate, accelerator
        self.epoch = self._handed_out = 0

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self.dataset) // self._rows_per_step

    def __iter__(self) -> Iterator[Any]:
        """This process's batches of one pass, or of the rest of it.

        Raises:
            DataError: for a dataset that does not fill a single batch.
        """
        from accelerate.utils import send_to_device

        self.check()
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        rows = self._order()[: len(self) * self._rows_per_step]
        rows = rows.view(-1, processes, self.batch_size)[self._handed_out :, rank]
        loader = DataLoader(
            self.dataset,
            batch_sampler=rows.tolist(),
            collate_fn=self.collate,
            generator=torch.Generator(),  # the default would draw from the caller's generator
        )
        for batch in loader:
            self._handed_out += 1
            yield send_to_device(batch, self.accelerator.device)
        self.epoch, self._handed_out = self.epoch + 1, 0

    def check(self) -> None:
        """Raise DataError for a dataset that does not fill a single batch."""
        if not len(self):
            raise DataError(
                f"the dataset has {len(self.dataset)} rows, and a step takes "
                f"{self._rows_per_step}: give it more, or lower batch_size"
            )

    @property
    def position(self) -> tuple[int, int]:
        """Passes completed, and rows of the present one handed out over all processes."""
        return self.epoch, self._handed_out * self._rows_per_step

    def go_to(self, epoch: int, rows: int) -> None:
        """Let the next pass begin at this `position`.

        Raises:
            CheckpointError: if no batch begins there, as the batches then were of another size.
        """
        if rows % self._rows_per_step:
            raise CheckpointError(
                f"{rows} rows of the pass have been used, which is no whole number of batches of "
                f"{self._rows_per_step}: use the batch size of the run that was interrupted"
            )
        self.epoch, self._handed_out = epoch, rows // self._rows_per_step

    @property
    def _rows_per_step(self) -> int:
        return self.batch_size * self.accelerator.num_processes

    def _order(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.epoch + 1):
            order = torch.randperm(len(self.dataset), generator=generator)
        return order


class Replies:
    """Replies that PPO-ptx learns to predict beside PPO, drawn anew for every step."""

    def __init__(
        self,
        dataset: Sequence[tuple[torch.Tensor, torch.Tensor]],
        accelerator: Accelerator,
        pad_token_id: int,
    ) -> None:
        """
        Args:
            dataset: 1-d tensors of token ids, a context and the reply to it.
        """
        self.dataset, self.accelerator, self.pad_token_id = dataset, accelerator, pad_token_id

    def check(self, config: PPOConfig) -> None:
        """Raise ModelError if there are none although `ptx_coef` asks for them."""
        if config.ptx_coef and not self.dataset:
            raise ModelError(
                f"ptx_coef is {config.ptx_coef}, but there is no ptx_dataset: give the trainer "
                "pairs of context and reply, or set ptx_coef to 0"
            )

    def draw(self, config: PPOConfig, random: torch.Generator) -> Batch | None:
        """This process's `batch_size` replies of one step; None without `ptx_coef`."""
        self.check(config)
        if not config.ptx_coef:
            return None
        processes, device = self.accelerator.num_processes, self.accelerator.device
        size = (processes, config.batch_size)
        rows = torch.randint(len(self.dataset), size, generator=random)
        # The same width in all processes: of the longest reply that any of them has drawn.
        width = max(len(self.dataset[i][1]) for i in rows.flatten().tolist())
        pairs = [self.dataset[i] for i in rows[self.accelerator.process_index].tolist()]
        contexts, replies = ([ids.to(device) for ids in side] for side in zip(*pairs, strict=True))
        return lay_out(contexts, replies, self.pad_token_id, width=width)


def used_columns(dataset: Any) -> Any:
    """A `datasets.Dataset` with the columns that PPO or its log can use; others as they are."""
    if not hasattr(dataset, "column_names"):
        return dataset
    used = ("input_ids", "attention_mask", "label", "query", "response")
    return dataset.select_columns([name for name in dataset.column_names if name in used])


def collate_columns(rows: list[Any]) -> Any:
    """Rows of a dataset to columns: queries differ in length, so nothing is stacked.

    Returns:
        Of dicts a dict of lists, of tuples a tuple of lists; other rows as they are, in a list.
    """
    if isinstance(rows[0], Mapping):
        return {key: [row[key] for row in rows] for key in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple([row[i] for row in rows] for i in range(len(rows[0])))
    return rows
