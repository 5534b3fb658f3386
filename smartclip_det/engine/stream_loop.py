"""Training loop of alignment runs that can start at any step.

MMEngine's loops resume at epochs, or by loading and discarding all batches that were already trained. Here a resumed
run requests step n directly, with any number of workers. Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

from typing import Any

import torch
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner

from smartclip_det.core.errors import UserError
from smartclip_det.engine.stream_sampler import StreamBatches


class _Stream:
    """Iterator over a loader of :class:`StreamBatches`, for MMEngine's loop."""

    def __init__(self, loader: Any) -> None:
        self._loader, self._iterator = loader, None

    def start_at(self, step: int) -> None:
        self._loader.batch_sampler.start_at(step)
        self._iterator = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)


@LOOPS.register_module()
class StreamTrainLoop(IterBasedTrainLoop):
    """``max_epochs`` epochs of a stream, counted in steps; resumes exactly at the next step.

    Args:
        runner: the runner.
        dataloader: a dataloader or its config, with ``batch_sampler=dict(type="StreamBatches")``.
        max_epochs: length of the run.
        max_steps: stop earlier; schedules with an explicit ``end`` keep it.
        val_interval: steps between validations; default: one epoch.
        kwargs: arguments of ``IterBasedTrainLoop``.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int = 3,
        max_steps: int | None = None,
        val_interval: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(dataloader, dict):
            dataloader = runner.build_dataloader(dataloader, seed=runner.seed)
        if not isinstance(dataloader.batch_sampler, StreamBatches):
            raise UserError("StreamTrainLoop needs batch_sampler=dict(type='StreamBatches') in train_dataloader.")
        self.steps_per_epoch = len(dataloader.batch_sampler)
        steps = max_steps or max_epochs * self.steps_per_epoch
        super().__init__(
            runner, dataloader, max_iters=steps, val_interval=val_interval or self.steps_per_epoch, **kwargs
        )
        self.dataloader_iterator = _Stream(self.dataloader)

    def run(self) -> torch.nn.Module:
        """Train; unlike MMEngine's loop, without loading and discarding batches after resuming."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader_iterator.start_at(self._iter)
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
            if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
                self.runner.val_loop.run()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model
