"""Batches of alignment training as a pure function of (seed, step): the sampler, and the batches drawn from it.

Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS

from smartclip_det.core.errors import UserError


@DATA_SAMPLERS.register_module()
class EpochStreamSampler:
    """Size, seed and order of the epochs for :class:`StreamBatches`; it draws no samples itself."""

    def __init__(self, dataset: Any, seed: int | None = None, shuffle: bool = True) -> None:
        from mmengine.dist import get_dist_info

        self.rank, self.world_size = get_dist_info()
        self.size, self.seed, self.shuffle = len(dataset), seed or 0, shuffle

    def __len__(self) -> int:
        return self.size

    def order(self, epoch: int) -> list[int]:
        """Permutation of an epoch, drawn from (seed, epoch) only and equal on all processes."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator).tolist()


@DATA_SAMPLERS.register_module()
class StreamBatches:
    """Endless stream of this process's batches; index ``epoch * N + i`` encodes the epoch of a sample.

    Every image is used once per epoch. The last batch of an epoch is kept, as in the released training, and split as
    evenly as possible (losses are weighted by true counts). It is only dropped, with a log message, if it has fewer
    images than there are processes.

    Args:
        sampler: an :class:`EpochStreamSampler`.
        batch_size: images per process in a full batch.

    Raises:
        UserError: for fewer images than processes.
    """

    def __init__(self, sampler: EpochStreamSampler, batch_size: int) -> None:
        if not isinstance(sampler, EpochStreamSampler):
            raise UserError(f"StreamBatches needs sampler=dict(type='EpochStreamSampler'); given {type(sampler)}.")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1; given {batch_size}.")
        if len(sampler) < sampler.world_size:
            raise UserError(f"{len(sampler)} images are too few for {sampler.world_size} processes: start fewer.")
        self.sampler, self.batch_size, self.start = sampler, batch_size, 0
        #: Step, epoch and samples of a resume position reached with another batch size.
        self.shift: tuple[int, int, int] | None = None
        self.joint = batch_size * sampler.world_size
        self.left_out = len(sampler) % self.joint if 0 < len(sampler) % self.joint < sampler.world_size else 0
        if self.left_out:
            print_log(
                f"Dropping the last {self.left_out} images of each epoch's order: they are fewer than the processes.",
                "current",
            )

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-(len(self.sampler) - self.left_out) // self.joint)

    def position(self, step: int) -> tuple[int, int]:
        """Epoch, and number of its samples used before a step."""
        if self.shift is not None and self.shift[0] <= step < (self.shift[1] + 1) * len(self):
            first, epoch, samples = self.shift
            return epoch, samples + (step - first) * self.joint
        return step // len(self), step % len(self) * self.joint

    def resume_at(self, epoch: int, samples: int) -> int:
        """Resume after this many samples of an epoch, whatever their batch size was: none is repeated or skipped.

        Returns:
            The step to count from, such that the epoch ends at its usual step.
        """
        left = len(self.sampler) - samples
        if left % self.joint < self.sampler.world_size:
            left -= left % self.joint
        if left <= 0:
            epoch, samples, left = epoch + 1, 0, len(self.sampler) - self.left_out
        step = (epoch + 1) * len(self) - -(-left // self.joint)
        self.start, self.shift = step, (step, epoch, samples)
        return step

    def start_at(self, step: int) -> None:
        """Start with a step."""
        self.start = step
        if self.shift is not None and self.shift[0] != step:
            self.shift = None

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from step ``start``, endless."""
        step, epoch, order = self.start, -1, []
        while True:
            if step // len(self) != epoch:
                epoch = step // len(self)
                order = self.sampler.order(epoch)
            joint = order[self.position(step)[1] :][: self.joint]
            r, w = self.sampler.rank, self.sampler.world_size
            mine = joint[len(joint) * r // w : len(joint) * (r + 1) // w]
            yield [epoch * len(self.sampler) + i for i in mine]
            step += 1
