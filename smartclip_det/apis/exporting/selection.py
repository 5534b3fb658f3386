"""Selection of detections as one operator: ``select_detections`` in PyTorch, NonMaxSuppression and TopK in ONNX.

The operator always returns ``count`` rows, padded with class -1 and score 0, so that the graph has static shapes.

Shape letters: R regions, C classes, N detections (``count``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smartclip_det.models.selection import select_detections


@torch.library.custom_op("smartclip_det::select_detections", mutates_args=())
def select_fixed(
    boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best (box, class) pairs after NMS per class.

    Args:
        boxes: ``[R, 4]`` xyxy.
        scores: ``[R, C]`` from 0.
        score_threshold: minimum score, exclusive; at least 0.
        iou_threshold: IoU above which NMS suppresses.
        count: N.

    Returns:
        ``[N]`` box indices, classes and scores in descending order, padded with class -1 and score 0.
    """
    rows, classes, values = select_detections(
        boxes, scores, score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=count
    )
    short = (0, count - len(rows))
    return functional.pad(rows, short), functional.pad(classes, short, value=-1), functional.pad(values, short)


@select_fixed.register_fake
def _(boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, count: int) -> Any:
    rows = boxes.new_empty(count, dtype=torch.long)
    return rows, torch.empty_like(rows), scores.new_empty(count)


def onnx_translations() -> dict[Any, Any]:
    """The operator's entry for ``torch.onnx.export(custom_translation_table=...)``."""
    return {torch.ops.smartclip_det.select_detections.default: _in_onnx}


def _in_onnx(boxes: Any, scores: Any, score_threshold: float, iou_threshold: float, count: int) -> Any:
    """:func:`select_fixed` in operators of ONNX (opset 18)."""
    from onnxscript import opset18

    op: Any = opset18  # Its stubs omit the lists and numbers that it accepts.
    by_class = op.Transpose(scores, perm=[1, 0])
    found = op.NonMaxSuppression(
        op.Unsqueeze(boxes, [0]), op.Unsqueeze(by_class, [0]), [count], [iou_threshold], [score_threshold]
    )
    pairs = op.Slice(found, [1], [3], [1])  # Columns: image, class, box.
    # Padded with ``count`` pairs of score 0 for TopK.
    empty = op.Constant(value_floats=[0.0] * count)
    values, order = op.TopK(op.Concat(op.GatherND(by_class, pairs), empty, axis=0), [count])
    fill = op.Constant(value_ints=[-1, 0] * count)
    chosen = op.Gather(op.Concat(pairs, op.Reshape(fill, [count, 2]), axis=0), order, axis=0)
    classes, rows = op.Split(chosen, axis=1, num_outputs=2)
    return op.Squeeze(rows, [1]), op.Squeeze(classes, [1]), values
