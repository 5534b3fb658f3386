"""Environment table and operator check: ``python -m smartclip_det.utils.env``.

Exit code 0 only if every operator ran; otherwise the command that fixes the installation is printed.
"""

from __future__ import annotations

import platform
import sys

from smartclip_det.core.errors import UserError
from smartclip_det.utils import compat
from smartclip_det.version import __version__

#: Distributions to list; for alternatives that provide the same module, the first that is installed.
_SHOWN = (
    "torch",
    "torchvision",
    "mmcv-lite/mmcv",
    "mmdet",
    "mmengine/onedl-mmengine",
    "open-clip-torch",
    "pycocotools",
    "lvis",
    "faster-coco-eval",
    "numpy",
    "opencv-python-headless/opencv-python",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Versions that affect results, for protocol stamps; ``absent`` if not installed."""
    installed = {}
    for names in _SHOWN:
        alternatives = names.split("/")
        name = next((n for n in alternatives if compat.version_of(n)), alternatives[0])
        installed[name] = compat.version_of(name) or "absent"
    return {"smartclip_det": __version__, "python": platform.python_version(), **installed}


def environment() -> dict[str, str]:
    """:func:`versions` plus platform, GPU and threads."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        **versions(),
        "platform": platform.platform(),
        "gpu": gpu,
        "torch CUDA": str(torch.version.cuda),
        "threads": str(torch.get_num_threads()),
        "operators": _operators(),
    }


def _operators() -> str:
    if compat.version_of("mmdet") is None:
        return "none (no mmdet)"
    try:
        return compat.operators_backend()
    except UserError:
        return "compiled, not loadable"


def check_operators(device: str) -> list[str]:
    """Run RoIAlign, NMS and MultiScaleDeformableAttention once; return one line for each.

    Raises:
        UserError: if one fails, with the command that fixes it.
    """
    compat.check_stack()
    import torch
    from mmcv.ops import MultiScaleDeformableAttention, RoIAlign, nms

    try:
        image = torch.arange(64.0, device=device).view(1, 1, 8, 8)
        rois = torch.tensor([[0.0, 0.0, 0.0, 8.0, 8.0]], device=device)
        pooled = RoIAlign(1, 1.0, 0)(image, rois)
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [5, 5, 8, 8]], device=device)
        indices = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1]
        attention = MultiScaleDeformableAttention(8, 2, 1, 2).to(device)
        shapes = torch.tensor([[4, 4]], device=device)
        starts = torch.zeros(1, dtype=torch.long, device=device)
        points = torch.full((3, 1, 1, 2), 0.5, device=device).transpose(0, 1)
        out = attention(
            torch.rand(3, 1, 8, device=device),
            value=torch.rand(16, 1, 8, device=device),
            reference_points=points,
            spatial_shapes=shapes,
            level_start_index=starts,
        )
    except (RuntimeError, ImportError, AttributeError) as error:
        raise UserError(f"An operator failed on {device} ({error}). Run `{compat.SETUP_COMMAND}`.") from error
    if indices.tolist() != [0, 2] or abs(pooled.item() - 31.5) > 1e-4 or not bool(out.isfinite().all()):
        raise UserError(
            f"Operators on {device} return wrong values (RoIAlign {pooled.item()}, NMS {indices.tolist()}). "
            f"Run `rm -rf .venv && {compat.SETUP_COMMAND}`."
        )
    return [f"RoIAlign on {device}: ok", f"NMS on {device}: ok", f"MultiScaleDeformableAttention on {device}: ok"]


def main() -> int:
    """Print the table and, if MMDetection is installed, check the operators on every available device."""
    for key, value in environment().items():
        note = compat.TESTED.get(key)
        flag = f"  (tested: {note})" if note and value != note else ""
        print(f"{key:22s} {value}{flag}")
    if compat.version_of("mmdet") is None:
        return 0
    import torch

    try:
        for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
            print("\n".join(check_operators(device)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
