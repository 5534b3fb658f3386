"""Data hooks of alignment training: seeding per step, truncated texts, slow loaders, unreadable images.

Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError
from smartclip_det.utils.files import write_whole


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds torch with (seed, step, rank) before each training step, so random draws do not depend on restarts."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch."""
        torch.manual_seed(((runner.seed or 0) * 1_000_003 + runner.iter) * 4096 + runner.rank)


@HOOKS.register_module()
class TextLimitHook(Hook):
    """Counts texts truncated to the context length; reports their number and fraction early on and at the end.

    Args:
        after: steps before the first report.
    """

    def __init__(self, after: int = 100) -> None:
        self.after, self.steps, self.cut, self.texts = after, 0, 0, 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count the texts of this process's batch."""
        for sample in data_batch["data_samples"]:
            self.texts += len(sample.drawn_captions)
            self.cut += sample.get("texts_cut", 0)
        self.steps += 1
        if self.steps == self.after:
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        """Report for the full run."""
        self._report(runner)

    def _report(self, runner: Runner) -> None:
        if self.cut:
            runner.logger.warning(
                f"{self.cut} of {self.texts} texts ({self.cut / self.texts:.1%}) exceeded the token limit and were cut."
            )


@HOOKS.register_module()
class LoaderAdviceHook(Hook):
    """Warns once if steps wait for data, with advice.

    Args:
        share: fraction of the step time that may be spent waiting for data.
        after: number of steps to measure, after as many warm-up steps.
    """

    priority = "LOW"

    def __init__(self, share: float = 0.2, after: int = 50) -> None:
        self.share, self.after = share, after
        self._waited, self._spent, self._steps = 0.0, 0.0, 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Accumulate the times recorded by MMEngine's timer."""
        scalars = runner.message_hub.log_scalars
        self._steps += 1
        if not self.after < self._steps <= 2 * self.after or "train/data_time" not in scalars:
            return
        self._waited += scalars["train/data_time"].current()
        self._spent += scalars["train/time"].current()
        if self._steps == 2 * self.after and self._waited > self.share * self._spent:
            runner.logger.warning(
                f"{self._waited / self._spent:.0%} of the step time is spent waiting for data: training is limited by "
                "the data loader. Increase train_dataloader.num_workers, or (most effective) prepare images with "
                "tools/data/cache_images.py (train_dataloader.dataset.images.cache)."
            )


@HOOKS.register_module()
class BrokenImagesHook(Hook):
    """Counts unreadable images that were replaced; stops the run if there are too many.

    Args:
        limit: fraction of samples that may be replaced.
        after: number of samples, over all processes, before the limit applies.
        every: steps between checks.
    """

    # After the scheduler step, so that the checkpoint saved before stopping can be resumed exactly.
    priority = "VERY_LOW"

    def __init__(self, limit: float = 0.05, after: int = 2000, every: int = 20) -> None:
        if not 0 <= limit <= 1 or every < 1:
            raise UserError(f"limit must be in [0, 1] and every at least 1; given {limit} and {every}.")
        self.limit, self.after, self.every, self.steps, self.seen = limit, after, every, 0, 0
        self.broken: dict[str, str] = {}
        self.replaced = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count those of this process's batch; the first ones are logged with the reason."""
        samples = data_batch["data_samples"]
        self.seen += len(samples)
        self.steps += 1
        for sample in samples:
            if reason := sample.get("replaced"):
                self.replaced += 1
                if sample.img_path not in self.broken and len(self.broken) < 10:
                    runner.logger.warning(f"An unreadable image was replaced by the next readable one. {reason}")
                self.broken[sample.img_path] = reason
        if self.steps % self.every == 0:
            self._check(runner)

    def _check(self, runner: Runner) -> None:
        """Stop if too many are broken; counts are summed over processes, so that all decide alike."""
        counts = torch.tensor(
            [self.replaced, self.seen], dtype=torch.float64, device=next(runner.model.parameters()).device
        )
        all_reduce(counts)
        replaced, seen = (int(c) for c in counts)
        if seen < self.after or replaced <= self.limit * seen:
            return
        name = f"iter_{runner.iter + 1}.pth"
        runner.save_checkpoint(runner.work_dir, name, by_epoch=False, backend_args={"backend": "atomic"})
        if is_main_process():
            write_whole(Path(runner.work_dir) / "last_checkpoint", str(Path(runner.work_dir) / name))
        first = next(iter(self.broken.values()), "see the log of another process.")
        raise UserError(
            f"{replaced} of {seen} images could not be read, more than the limit of {self.limit:.1%} "
            f"(BrokenImagesHook.limit). First: {first} The training state was saved in {name}."
        )

    def after_train(self, runner: Runner) -> None:
        """Report the totals of this process."""
        if self.replaced:
            runner.logger.warning(
                f"{len(self.broken)} different images of process {runner.rank} could not be read; {self.replaced} of "
                f"{self.seen} samples were replaced."
            )
