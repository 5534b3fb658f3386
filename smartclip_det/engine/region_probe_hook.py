"""The region probe in validation: whether alignment on whole captions costs the towers their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.text_bank import TextBank
from smartclip_det.engine.launch import unwrapped
from smartclip_det.engine.sharding import whole_parameters
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.utils.parallel import on_rank_zero

START = "region_probe_before_training"


@HOOKS.register_module()
class RegionProbeHook(Hook):
    """Adds the accuracy of ground-truth boxes, classified by the towers alone, to the metrics of each validation.

    Names are ``region_{base|novel|all}_{crop|dense}_{hard|off}``, so ``save_best`` can follow them. The same is
    measured before the first step; validation warns when dense accuracy has fallen below ``warn_below`` of it. One
    process measures, the others receive.
    """

    def __init__(
        self,
        ann_file: str,
        images: str,
        *,
        data_root: str = "",
        split_file: str | None = None,
        templates: str | Sequence[str] = "photo",
        views: Sequence[str] = ("dense",),
        dense_size: int = 0,
        fit: str = "pad",
        max_images: int = 500,
        warn_below: float = 0.9,
    ) -> None:
        """Build.

        Args:
            ann_file: COCO annotations.
            images: folder of ``file_name``.
            data_root: folder that the three paths start from.
            split_file: json with ``base`` and ``novel`` names; without it all classes of the annotations.
            templates: a template set or own templates.
            views: ``crop``, ``dense``.
            dense_size: side of the dense input in pixels; 0 for the tower's own.
            fit: how an image becomes a square, ``pad`` or ``squash``.
            max_images: the first so many images of the file are used; the number is in the log.
            warn_below: share of the first dense accuracy under which a warning is given.
        """
        self.ann_file, self.images, self.split_file = (
            p and str(Path(data_root) / p) for p in (ann_file, images, split_file)
        )
        self.templates = templates if isinstance(templates, str) else list(templates)
        self.views = [check_choice("views", v, ("crop", "dense")) for v in views]
        self.dense_size, self.fit, self.max_images, self.warn_below = dense_size, fit, max_images, warn_below

    def measure(self, runner: Runner) -> dict[str, float]:
        """Accuracies by name, the same on every process."""
        # Here, so that runs without this hook need no pycocotools.
        from smartclip_det.formats.annotations import load_ground_truth
        from smartclip_det.formats.class_splits import ov_coco_split

        towers = unwrapped(runner.model).towers
        truth = load_ground_truth(self.ann_file)
        split = ov_coco_split(self.split_file)[:2] if self.split_file else ()
        groups = dict(zip(("base", "novel"), split, strict=False))
        names = [n for g in groups.values() for n in g] or list(truth.categories.values())
        truth.data["images"] = truth.data["images"][: self.max_images]
        training = towers.training
        towers.eval()
        with whole_parameters(runner.model):
            # Processes meet in the bank, so it is made before one of them goes on alone.
            bank = build_bank(towers, names, templates=self.templates, progress=False)
            found = on_rank_zero(lambda: self._accuracies(towers, truth, groups, bank))
        towers.train(training)
        return found

    def _accuracies(self, towers: Any, truth: Any, groups: dict[str, Any], bank: TextBank) -> dict[str, float]:
        from smartclip_det.models.regions import RegionEncoder
        from smartclip_det.probing.region_probe import probe_accuracy, probe_regions

        encoder = RegionEncoder(towers, dense_size=self.dense_size, fit=self.fit)
        regions = probe_regions(encoder, truth, self.images, bank.names, views=self.views, progress=False)
        modes = ["off"] if towers.mask_network is None else ["hard", "off"]
        return {
            f"region_{group}_{view.split('_')[0]}_{mode}": value
            for group, views in probe_accuracy(regions, bank, groups, modes).items()
            for view, values in views.items()
            for mode, value in values.items()
        }

    def before_train(self, runner: Runner) -> None:
        """Measure the towers as they start; a resumed run has that already.

        Raises:
            UserError: for missing files.
        """
        files = {"annotations": self.ann_file, "image folder": self.images, "split file": self.split_file}
        for what, path in files.items():
            if path and not Path(path).exists():
                raise UserError(
                    f"The region probe's {what} {path} does not exist. Mend the hook's settings or drop it."
                )
        if runner.iter:
            return
        found = self.measure(runner)
        runner.message_hub.update_info(START, found)
        told = ", ".join(f"{k} {v:.3f}" for k, v in found.items())
        runner.logger.info(f"Region probe before training, {self.max_images} images at most: {told}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Measure, and compare with the start."""
        found = self.measure(runner)
        if metrics is not None:
            metrics.update(found)
        for name, value in found.items():
            runner.message_hub.update_scalar(f"val/{name}", value)
        start = runner.message_hub.get_info(START, default={})
        before, now = _dense(start), _dense(found)
        if before is not None and now is not None and now < self.warn_below * before:
            runner.logger.warning(
                f"Region probe: dense accuracy is {now:.3f}, it was {before:.3f} before training: alignment costs the "
                "towers their boxes. configs/smartclip_align/README.md tells what keeps them (distillation from the "
                "initial tower, region_contrast)."
            )


def _dense(found: dict[str, float]) -> float | None:
    """Best over the mask modes: masks are new when training starts."""
    values = [v for k, v in found.items() if k.startswith("region_all_dense_")]
    return max(values) if values else None
