"""Versions and compiled operators: the one file that knows where libraries disagree.

Each problem gives one readable error with the command that mends it.
"""

from __future__ import annotations

import importlib
import logging
from importlib import metadata
from typing import Any

from smartclip_det.core.errors import UserError

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
