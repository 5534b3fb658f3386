"""Hooks of alignment runs; they need neither mmdet nor mmcv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError
from smartclip_det.engine.launch import unwrapped
from smartclip_det.engine.sharding import whole_parameters
from smartclip_det.models.losses.alignment_loss import bound_scale_
from smartclip_det.models.towers.whitening import whiten_patch_embedding
from smartclip_det.models.vocabulary import build_bank


@HOOKS.register_module()
class CaptionEpochHook(Hook):
    """Tells the data set the epoch, on which its captions depend (workers must not be persistent)."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Before the workers of an epoch start."""
        runner.train_dataloader.dataset.set_epoch(runner.epoch)


@HOOKS.register_module()
class WhitenPatchesHook(Hook):
    """Starts a tower that is trained from nothing by :func:`whiten_patch_embedding`; does nothing on resuming."""

    def __init__(self, images: int = 1000) -> None:
        """Build.

        Args:
            images: the first so many training images are used, so every process finds the same weights.
        """
        self.images = images

    def before_train(self, runner: Runner) -> None:
        """Once, before the first step."""
        if runner.iter or runner._load_from:
            return
        dataset, model = runner.train_dataloader.dataset, unwrapped(runner.model)
        pixels = torch.stack([dataset.image(i) for i in range(min(self.images, len(dataset)))])
        with whole_parameters(runner.model, writeback=True):
            whiten_patch_embedding(model.towers.image_tower, model.normalised(pixels))


@HOOKS.register_module()
class LearnedScaleHook(Hook):
    """Keeps a learned scale from 1 to 100 after each step, as CLIP's training does."""

    priority = "HIGH"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Before anything is saved."""
        model = unwrapped(runner.model)
        if model.loss.learns_scale:
            bound_scale_(model.towers.logit_scale)


@HOOKS.register_module()
class SparsityRampHook(Hook):
    """Brings the sparsity of masks in step by step: 0 up to ``begin``, then in a line to the loss's own at ``end``."""

    def __init__(self, end: int, begin: int = 0) -> None:
        """Build.

        Args:
            end: step from which the whole weight is in force.
            begin: step up to which there is none.
        """
        if not 0 <= begin < end:
            raise UserError(f"SparsityRampHook needs 0 <= begin < end, in steps; given {begin} and {end}.")
        self.begin, self.end = begin, end
        self.whole: float | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """A function of the step alone, so a resumed run has the same."""
        loss = unwrapped(runner.model).loss
        if self.whole is None:
            self.whole = loss.sparsity_weight
        loss.sparsity_weight = self.whole * min(1.0, max(0.0, (runner.iter - self.begin) / (self.end - self.begin)))


@HOOKS.register_module()
class TowerCheckpointHook(Hook):
    """Writes ``meta['tower_config']`` into checkpoints, so that they are read as towers."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Facts that tensors do not tell: heads, activation, mask_pad."""
        checkpoint["meta"]["tower_config"] = unwrapped(runner.model).towers.config.to_dict()


@HOOKS.register_module()
class PromptBankHook(Hook):
    """Before validation, encodes the vocabularies of the data set's ``metainfo`` with the towers as they are."""

    def __init__(self, templates: str | Sequence[str] = "photo") -> None:
        """Build.

        Args:
            templates: a template set or own templates.
        """
        self.templates = templates if isinstance(templates, str) else list(templates)

    def _set(self, runner: Runner, metainfo: Any) -> None:
        model = unwrapped(runner.model)
        vocabularies = metainfo.get("vocabularies", {})
        with whole_parameters(runner.model):
            banks = {
                n: build_bank(model.towers, names, templates=self.templates, progress=False)
                for n, names in vocabularies.items()
            }
        model.set_text_banks(banks)

    def before_val_epoch(self, runner: Runner) -> None:
        """Encode for validation."""
        self._set(runner, runner.val_dataloader.dataset.metainfo)

    def before_test_epoch(self, runner: Runner) -> None:
        """Encode for testing."""
        self._set(runner, runner.test_dataloader.dataset.metainfo)
