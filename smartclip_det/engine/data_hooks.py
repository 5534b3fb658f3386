"""Hooks on the data of alignment runs: the seed of each step, cut texts, slow loaders, unreadable images.

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
    """Before each training step, seeds torch by (seed, step, rank): what a step draws does not depend on a restart."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed."""
        torch.manual_seed(((runner.seed or 0) * 1_000_003 + runner.iter) * 4096 + runner.rank)


@HOOKS.register_module()
class TextLimitHook(Hook):
    """Counts texts that were cut to the context, and tells number and share once early and once at the end."""

    def __init__(self, after: int = 100) -> None:
        """Build.

        Args:
            after: steps before the first report.
        """
        self.after, self.steps, self.cut, self.texts = after, 0, 0, 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count those of this process's batch."""
        for sample in data_batch["data_samples"]:
            self.texts += len(sample.drawn_captions)
            self.cut += sample.get("texts_cut", 0)
        self.steps += 1
        if self.steps == self.after:
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        """Report the whole run."""
        self._report(runner)

    def _report(self, runner: Runner) -> None:
        if self.cut:
            runner.logger.warning(
                f"{self.cut} of {self.texts} texts ({self.cut / self.texts:.1%}) were over the token limit and cut."
            )


@HOOKS.register_module()
class LoaderAdviceHook(Hook):
    """Says once when steps wait for data, and what helps."""

    priority = "LOW"

    def __init__(self, share: float = 0.2, after: int = 50) -> None:
        """Build.

        Args:
            share: of the time of a step that waiting for data may take.
            after: steps that are looked at, after as many to warm up.
        """
        self.share, self.after = share, after
        self._waited, self._spent, self._steps = 0.0, 0.0, 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Add up the times that MMEngine's timer keeps."""
        scalars = runner.message_hub.log_scalars
        self._steps += 1
        if not self.after < self._steps <= 2 * self.after or "train/data_time" not in scalars:
            return
        self._waited += scalars["train/data_time"].current()
        self._spent += scalars["train/time"].current()
        if self._steps == 2 * self.after and self._waited > self.share * self._spent:
            runner.logger.warning(
                f"{self._waited / self._spent:.0%} of the time of a step is waiting for data: the loader is the bound. "
                "More train_dataloader.num_workers help; images prepared by tools/data/cache_images.py "
                "(train_dataloader.dataset.cache) help most."
            )


@HOOKS.register_module()
class BrokenImagesHook(Hook):
    """Counts images that could not be read and were replaced; stops a run in which they are too many."""

    # After the schedule's step, so that what is saved before stopping goes on exactly.
    priority = "VERY_LOW"

    def __init__(self, limit: float = 0.05, after: int = 2000, every: int = 20) -> None:
        """Build.

        Args:
            limit: share of samples that may be replaced.
            after: samples of all processes seen before the share is looked at.
            every: steps between looks.
        """
        if not 0 <= limit <= 1 or every < 1:
            raise UserError(f"limit is a share in [0, 1] and every at least 1; given {limit} and {every}.")
        self.limit, self.after, self.every, self.steps, self.seen = limit, after, every, 0, 0
        self.broken: dict[str, str] = {}
        self.replaced = 0

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Count those of this process's batch; the first ones are logged with their reason."""
        samples = data_batch["data_samples"]
        self.seen += len(samples)
        self.steps += 1
        for sample in samples:
            if reason := sample.get("replaced"):
                self.replaced += 1
                if sample.img_path not in self.broken and len(self.broken) < 10:
                    runner.logger.warning(f"An image was replaced by the next one that can be read. {reason}")
                self.broken[sample.img_path] = reason
        if self.steps % self.every == 0:
            self._look(runner)

    def _look(self, runner: Runner) -> None:
        """Stop where too many are broken; all processes decide by the counts of all."""
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
        first = next(iter(self.broken.values()), "told by another process.")
        raise UserError(
            f"{replaced} of {seen} images could not be read, more than the limit of {self.limit:.1%} "
            f"(BrokenImagesHook.limit); the first: {first} What was trained is in {name}."
        )

    def after_train(self, runner: Runner) -> None:
        """Report."""
        if self.replaced:
            runner.logger.warning(
                f"{len(self.broken)} different images of process {runner.rank} could not be read; {self.replaced} of "
                f"{self.seen} samples were replaced."
            )
