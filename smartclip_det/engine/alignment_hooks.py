"""Hooks for alignment training; they need neither mmdet nor mmcv."""

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
    """Passes the epoch to the dataset, whose captions depend on it (workers must not be persistent)."""

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the epoch before its workers start."""
        runner.train_dataloader.dataset.set_epoch(runner.epoch)


@HOOKS.register_module()
class WhitenPatchesHook(Hook):
    """Initialises a tower trained from scratch with :func:`whiten_patch_embedding`; does nothing when resuming.

    Args:
        images: number of training images to use, from the start, so that every process computes the same weights.
    """

    def __init__(self, images: int = 1000) -> None:
        self.images = images

    def before_train(self, runner: Runner) -> None:
        """Run once before the first step."""
        if runner.iter or runner._load_from:
            return
        dataset, model = runner.train_dataloader.dataset, unwrapped(runner.model)
        pixels = torch.stack([dataset.image(i) for i in range(min(self.images, len(dataset)))])
        with whole_parameters(runner.model, writeback=True):
            whiten_patch_embedding(model.towers.image_tower, model.normalised(pixels))


@HOOKS.register_module()
class LearnedScaleHook(Hook):
    """Clamps a learned scale to [1, 100] after each step, as CLIP's training does."""

    priority = "HIGH"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Clamp before anything is saved."""
        model = unwrapped(runner.model)
        if model.loss.learns_scale:
            bound_scale_(model.towers.logit_scale)


@HOOKS.register_module()
class SparsityRampHook(Hook):
    """Ramps up the sparsity weight: 0 until step ``begin``, then linearly to its configured value at step ``end``.

    Args:
        end: step from which the full weight applies.
        begin: step until which the weight is 0.
    """

    def __init__(self, end: int, begin: int = 0) -> None:
        if not 0 <= begin < end:
            raise UserError(f"SparsityRampHook needs 0 <= begin < end, in steps; given {begin} and {end}.")
        self.begin, self.end = begin, end
        self.full_weight: float | None = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the weight as a function of the step only, so that a resumed run is the same."""
        loss = unwrapped(runner.model).loss
        if self.full_weight is None:
            self.full_weight = loss.sparsity_weight
        progress = min(1.0, max(0.0, (runner.iter - self.begin) / (self.end - self.begin)))
        loss.sparsity_weight = self.full_weight * progress


@HOOKS.register_module()
class TowerCheckpointHook(Hook):
    """Writes ``meta['tower_config']`` into checkpoints, so that they can be loaded as towers."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add settings that tensors do not show: heads, activation, mask_pad."""
        checkpoint["meta"]["tower_config"] = unwrapped(runner.model).towers.config.to_dict()


@HOOKS.register_module()
class PromptBankHook(Hook):
    """Before validation, encodes the vocabularies of the dataset's ``metainfo`` with the current towers.

    Args:
        templates: a template set or a list of templates.
    """

    def __init__(self, templates: str | Sequence[str] = "photo") -> None:
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
