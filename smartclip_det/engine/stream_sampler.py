"""Batches of alignment runs as a pure function of (seed, step): the sampler, and the batches drawn from it.

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
    """What :class:`StreamBatches` needs to know; it draws nothing itself."""

    def __init__(self, dataset: Any, seed: int | None = None, shuffle: bool = True) -> None:
        from mmengine.dist import get_dist_info

        self.rank, self.world_size = get_dist_info()
        self.size, self.seed, self.shuffle = len(dataset), seed or 0, shuffle

    def __len__(self) -> int:
        return self.size

    def order(self, epoch: int) -> list[int]:
        """The order of an epoch: a permutation drawn from (seed, epoch) alone, equal on all processes."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.size, generator=generator).tolist()


@DATA_SAMPLERS.register_module()
class StreamBatches:
    """An endless stream of this process's batches; sample ``epoch * N + index`` carries its epoch with it.

    Every image is used once in an epoch and the last batch of one is kept, as in the released training: its images are
    shared out as evenly as possible (the losses weigh by true counts). Only a last batch with fewer images than
    processes is left out, which the log says.
    """

    def __init__(self, sampler: EpochStreamSampler, batch_size: int) -> None:
        """Build.

        Args:
            sampler: an :class:`EpochStreamSampler`.
            batch_size: images of one process in a full batch.

        Raises:
            UserError: when there are fewer images than processes.
        """
        if not isinstance(sampler, EpochStreamSampler):
            raise UserError(f"StreamBatches needs sampler=dict(type='EpochStreamSampler'); given {type(sampler)}.")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1; given {batch_size}.")
        if len(sampler) < sampler.world_size:
            raise UserError(f"{len(sampler)} images cannot feed {sampler.world_size} processes: start fewer.")
        self.sampler, self.batch_size, self.start = sampler, batch_size, 0
        #: Step, epoch and samples of a start that other batches than these came to.
        self.shift: tuple[int, int, int] | None = None
        self.joint = batch_size * sampler.world_size
        self.left_out = len(sampler) % self.joint if 0 < len(sampler) % self.joint < sampler.world_size else 0
        if self.left_out:
            print_log(
                f"The last {self.left_out} images of each epoch's order are fewer than the processes and are "
                "left out of that epoch.",
                "current",
            )

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-(len(self.sampler) - self.left_out) // self.joint)

    def position(self, step: int) -> tuple[int, int]:
        """Epoch, and samples of it that are used, before a step."""
        if self.shift is not None and self.shift[0] <= step < (self.shift[1] + 1) * len(self):
            first, epoch, samples = self.shift
            return epoch, samples + (step - first) * self.joint
        return step // len(self), step % len(self) * self.joint

    def resume_at(self, epoch: int, samples: int) -> int:
        """Go on behind so many samples of an epoch, whatever batches they came in: none comes twice or is left out.

        Returns:
            The step to count from; steps end with the epoch as always.
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
        """Go on with a step."""
        self.start = step
        if self.shift is not None and self.shift[0] != step:
            self.shift = None

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from step ``start`` on, without end."""
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
