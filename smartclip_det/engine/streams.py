"""Batches of alignment runs as a pure function of (seed, step), and the loop that starts them at any step.

MMEngine's loops resume at epochs, or by loading what was seen; here a resumed run asks for step n directly, whatever
the number of workers. Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, HOOKS, LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner

from smartclip_det.core.errors import UserError
from smartclip_det.utils.files import write_whole


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


class _Stream:
    """The iterator that MMEngine's loop wants, on a loader of :class:`StreamBatches`."""

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
    """``max_epochs`` epochs of a stream, counted in steps; resumes at exactly the next step."""

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int = 3,
        max_steps: int | None = None,
        val_interval: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Build.

        Args:
            runner: the runner.
            dataloader: its config or itself, with ``batch_sampler=dict(type="StreamBatches")``.
            max_epochs: length of the run.
            max_steps: stop earlier; schedules that name their own ``end`` keep it.
            val_interval: steps between validations; default: an epoch.
            kwargs: of ``IterBasedTrainLoop``.
        """
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
        """Train; MMEngine's own loop would load and throw away every batch that was trained before a resumption."""
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
