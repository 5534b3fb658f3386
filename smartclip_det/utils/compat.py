"""Versions and compiled operators: the one file that knows where libraries disagree.

Each problem gives one readable error with the command that mends it.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from smartclip_det.core.errors import UserError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
SETUP_COMMAND = "make setup"
#: Distribution and exact version that were tested together (setup.cfg pins the same).
TESTED = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "onedl-mmengine": "0.10.12",
}


def check_stack() -> None:
    """Raise one readable error when MMCV, its operators, MMDetection or MMEngine are missing or unfit."""
    for module, distribution in (("mmengine", "onedl-mmengine"), ("mmcv", "mmcv"), ("mmdet", "mmdet")):
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:
            raise UserError(
                f"{module} cannot be used ({error}). Tested: {distribution}=={TESTED[distribution]}. "
                f"Run `{SETUP_COMMAND}`."
            ) from error
    try:
        importlib.import_module("mmcv._ext")
    except ImportError as error:
        raise UserError(
            f"mmcv has no compiled operators ({error}). It was built without torch; run "
            f"`rm -rf .venv && .uv/bin/uv cache clean mmcv && {SETUP_COMMAND}`."
        ) from error


def mmcv_has_cuda() -> bool:
    """Whether mmcv's operators were compiled for CUDA."""
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() not in ("not available", "")


_routed = False


def install_operator_routes(*, force: bool = False) -> bool:
    """Send RoIAlign, NMS and MultiScaleDeformableAttention on CUDA tensors past a CPU-only mmcv.

    They go to torchvision (RoIAlign, NMS) and plain torch (deformable attention). CPU tensors keep mmcv's
    operators, unless ``force`` sends everything that way, as the tests do.

    Returns:
        Whether routes are installed.
    """
    import torch

    global _routed
    if not force and (not torch.cuda.is_available() or mmcv_has_cuda()):
        return _routed
    _route_nms(force)
    _route_roi_align(force)
    _route_deformable_attention()
    if not _routed:
        print(
            "mmcv has no CUDA operators: RoIAlign, NMS and MultiScaleDeformableAttention on CUDA tensors use "
            "torchvision or plain torch.",
            file=sys.stderr,
        )
    _routed = True
    return True


def _route_nms(force: bool) -> None:
    import torch
    from torchvision.ops import nms as torchvision_nms

    # ``mmcv.ops.nms`` is a function that hides the module of its name.
    nms_module = importlib.import_module("mmcv.ops.nms")
    compiled = getattr(nms_module.ext_module, "_compiled_nms", nms_module.ext_module.nms)

    def nms(bboxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
        if not (force or bboxes.is_cuda):
            out: torch.Tensor = compiled(bboxes, scores, iou_threshold=iou_threshold, offset=offset)
            return out
        if offset:
            bboxes = torch.cat([bboxes[:, :2], bboxes[:, 2:] + offset], dim=1)
        return torchvision_nms(bboxes, scores, iou_threshold)

    nms_module.ext_module._compiled_nms = compiled
    nms_module.ext_module.nms = nms


def _route_roi_align(force: bool) -> None:
    from torchvision.ops import roi_align

    # ``mmcv.ops.roi_align`` is a function that hides the module of its name.
    module = importlib.import_module("mmcv.ops.roi_align")
    RoIAlign = module.RoIAlign  # noqa: N806
    _route_roi_align_function(module, force)
    compiled = getattr(RoIAlign, "_compiled_forward", RoIAlign.forward)

    def forward(self: Any, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        if not (force or input.is_cuda) or self.pool_mode != "avg":
            out: torch.Tensor = compiled(self, input, rois)
            return out
        return roi_align(
            input, rois.to(input.dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )

    RoIAlign._compiled_forward = compiled
    RoIAlign.forward = forward


def _route_roi_align_function(module: Any, force: bool) -> None:
    """The function form, which MMDetection's bitmap masks call (Mask R-CNN's targets)."""
    from torchvision.ops import roi_align as torchvision_roi_align

    compiled = getattr(module, "_compiled_roi_align", module.roi_align)

    def roi_align(
        input: torch.Tensor,
        rois: torch.Tensor,
        output_size: Any,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        pool_mode: str = "avg",
        aligned: bool = True,
    ) -> torch.Tensor:
        if not (force or input.is_cuda) or pool_mode != "avg":
            out: torch.Tensor = compiled(input, rois, output_size, spatial_scale, sampling_ratio, pool_mode, aligned)
            return out
        return torchvision_roi_align(input, rois.to(input.dtype), output_size, spatial_scale, sampling_ratio, aligned)

    module._compiled_roi_align = compiled
    # The last two bound the name when they were imported.
    for name in ("mmcv.ops.roi_align", "mmcv.ops", "mmdet.structures.mask.structures"):
        vars(sys.modules.get(name) or importlib.import_module(name))["roi_align"] = roi_align


def _route_deformable_attention() -> None:
    from mmcv.ops import multi_scale_deform_attn

    # With this flag off the module takes its own plain-torch branch, whatever the device.
    multi_scale_deform_attn.IS_CUDA_AVAILABLE = False


def install_safe_loading() -> None:
    """Make MMEngine load checkpoints by :func:`safe_load.safe_torch_load`.

    The fork falls back to unsafe loading with a warning when a file holds foreign classes; ours refuses.
    """
    from mmengine.runner import checkpoint

    from smartclip_det.utils.safe_load import safe_torch_load

    def load(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return safe_torch_load(file, map_location if map_location is not None else "cpu")

    checkpoint._safe_torch_load = load


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def allow_numpy_float() -> None:
    """Lvis 0.5.3 reads ``np.float``, which numpy 2 no longer has."""
    import numpy as np

    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]


def install_language_routes() -> None:
    """Make MMDetection's BERT (Grounding DINO, GLIP) run on transformers 5; a no-op on 4 and without the package.

    Two things are gone there: ``batch_encode_plus`` of tokenizers, and attention masks of three dimensions.
    """
    version = version_of("transformers")
    if version is None or int(version.split(".")[0]) < 5:
        return
    import torch
    from mmdet.models.language_models.bert import BertEncoder
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    if not hasattr(PreTrainedTokenizerBase, "batch_encode_plus"):
        PreTrainedTokenizerBase.batch_encode_plus = (  # type: ignore[attr-defined]
            lambda self, texts, **options: self(list(texts), **options)
        )
    if hasattr(BertEncoder, "_without_route"):
        return
    original = BertEncoder._without_route = BertEncoder.__init__

    def with_heads(_: Any, args: Any, options: dict[str, Any]) -> Any:
        mask = options.get("attention_mask")
        if mask is not None and mask.dim() == 3:
            # Additive: right for every implementation of attention, where a bool mask is for some alone.
            hidden = torch.zeros(mask.shape, device=mask.device).masked_fill(
                ~mask.bool(), torch.finfo(torch.float32).min
            )
            options = {**options, "attention_mask": hidden.unsqueeze(1)}
        return args, options

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.model.register_forward_pre_hook(with_heads, with_kwargs=True)

    BertEncoder.__init__ = init
