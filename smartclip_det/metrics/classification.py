"""Accuracies of zero-shot classification.

Shape letters: N images, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """``top1``, ``top5`` and ``mean_per_class`` (of top-1) as fractions; ties and NaN count as wrong.

    Args:
        scores: ``[N, C]``.
        labels: ``[N]``.
    """
    own = scores.gather(1, labels.unsqueeze(1))
    ranks = (~(scores < own)).sum(dim=1) - 1
    right = (ranks == 0).double()
    of_class = [float(right[labels == c].mean()) for c in torch.unique(labels)]
    return {
        "top1": float(right.mean()),
        "top5": float((ranks < 5).double().mean()),
        "mean_per_class": float(np.mean(of_class)),
    }
