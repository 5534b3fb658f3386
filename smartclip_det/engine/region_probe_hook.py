"""Region probe during validation: whether alignment on full captions degrades the towers' region features."""

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
    """Adds the accuracy of classifying ground-truth boxes with the towers alone to the metrics of each validation.

    Names are ``region_{base|novel|all}_{crop|dense}_{hard|off}``, so ``save_best`` can use them. The probe also runs
    before the first step; validation warns if dense accuracy drops below ``warn_below`` times that value. Rank 0
    measures and broadcasts.

    Args:
        ann_file: COCO annotations.
        images: folder with the image files (``file_name``).
        data_root: root of the three paths.
        split_file: JSON with ``base`` and ``novel`` names; default: all classes of the annotations.
        templates: a template set or a list of templates.
        views: ``crop``, ``dense``.
        dense_size: side of the dense input in pixels; 0: the tower's own.
        fit: how an image is made square, ``pad`` or ``squash``.
        max_images: number of images to use, from the start of the file.
        warn_below: warn below this fraction of the initial dense accuracy.
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
        self.ann_file, self.images, self.split_file = (
            p and str(Path(data_root) / p) for p in (ann_file, images, split_file)
        )
        self.templates = templates if isinstance(templates, str) else list(templates)
        self.views = [check_choice("views", v, ("crop", "dense")) for v in views]
        self.dense_size, self.fit, self.max_images, self.warn_below = dense_size, fit, max_images, warn_below

    def measure(self, runner: Runner) -> dict[str, float]:
        """Accuracies by name, equal on all processes."""
        # Imported here, so that runs without this hook do not need pycocotools.
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
            # build_bank uses collectives, so it must run before rank 0 continues alone.
            bank = build_bank(towers, names, templates=self.templates, progress=False)
            accuracies = on_rank_zero(lambda: self._accuracies(towers, truth, groups, bank))
        towers.train(training)
        return accuracies

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
        """Measure the initial towers; a resumed run already has the values.

        Raises:
            UserError: for missing files.
        """
        files = {"annotations": self.ann_file, "image folder": self.images, "split file": self.split_file}
        for what, path in files.items():
            if path and not Path(path).exists():
                raise UserError(f"The region probe's {what} {path} does not exist. Fix or remove RegionProbeHook.")
        if runner.iter:
            return
        accuracies = self.measure(runner)
        runner.message_hub.update_info(START, accuracies)
        shown = ", ".join(f"{k} {v:.3f}" for k, v in accuracies.items())
        runner.logger.info(f"Region probe before training (at most {self.max_images} images): {shown}")

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Measure, and compare with the initial towers."""
        accuracies = self.measure(runner)
        if metrics is not None:
            metrics.update(accuracies)
        for name, value in accuracies.items():
            runner.message_hub.update_scalar(f"val/{name}", value)
        start = runner.message_hub.get_info(START, default={})
        before, now = _dense(start), _dense(accuracies)
        if before is not None and now is not None and now < self.warn_below * before:
            runner.logger.warning(
                f"Region probe: dense accuracy dropped from {before:.3f} before training to {now:.3f}: alignment "
                "degrades the towers' region features. Remedies are in configs/smartclip_align/README.md "
                "(distillation from the initial tower, region_contrast)."
            )


def _dense(accuracies: dict[str, float]) -> float | None:
    """Best value over the mask modes, because masks may be untrained at the start."""
    values = [v for k, v in accuracies.items() if k.startswith("region_all_dense_")]
    return max(values) if values else None
