"""Library versions: the only module that works around differences between them.

Each problem is reported as one readable error with the command that fixes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.operators import finder

logger = logging.getLogger(__name__)
SETUP_COMMAND = "make setup"
INSTALL_COMMAND = 'pip install "smartclip_det[det]"'
#: Versions that were tested together (pyproject.toml pins the same).
TESTED = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "mmcv-lite": "2.1.0",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmengine": "0.10.7",
}


def check_stack() -> None:
    """Raise one readable error if MMCV, its operators, MMDetection or MMEngine are missing or incompatible."""
    for module, distribution in (("mmengine", "mmengine"), ("mmcv", "mmcv-lite"), ("mmdet", "mmdet")):
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:
            raise UserError(
                f"{module} cannot be imported ({error}). Detectors and trained grounding heads need it. Tested: "
                f"{distribution}=={TESTED[distribution]}. Run `{INSTALL_COMMAND}`, or `{SETUP_COMMAND}` in a checkout."
            ) from error
    operators_backend()


def operators_backend() -> str:
    """Which implementation of ``mmcv.ops`` is active: ours, on torchvision and torch, or the compiled one.

    Raises:
        UserError: if compiled operators are installed but cannot be loaded, with the commands that fix it.
    """
    try:
        extension = importlib.import_module(finder.EXTENSION)
    except ImportError as error:
        raise UserError(
            f"mmcv's compiled operators cannot be loaded ({error}); they were built for another torch or Python. "
            f"Rebuild them with `{finder.COMPILED_COMMAND}`, or run `{SETUP_COMMAND}` which compiles nothing."
        ) from error
    if finder.MARK in vars(extension):
        return "by torchvision and torch"
    cuda = extension.get_compiling_cuda_version()
    return "compiled, CPU only" if cuda in ("not available", "") else f"compiled, CUDA {cuda}"


class _SafeTorch(ModuleType):
    """torch as seen by MMEngine's checkpoint loader: ``load`` never runs pickled code."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    @staticmethod
    def load(file: Any, map_location: Any = None, **_: Any) -> Any:
        """Load plain data only, whatever options the caller passes."""
        from smartclip_det.utils.safe_load import safe_torch_load

        return safe_torch_load(file, map_location if map_location is not None else "cpu")


def install_safe_loading() -> None:
    """Make MMEngine load checkpoints from files, storage backends and URLs without running pickled code.

    MMEngine 0.10.7 leaves ``weights_only`` at torch's default, which since 2.6 rejects MMEngine's own message history,
    and sets it to False for URLs; the fork onedl-mmengine falls back to unsafe loading. Here any other class is an
    error.
    """
    from mmengine.runner import checkpoint

    from smartclip_det.utils.safe_load import safe_url_load

    checkpoint.torch = _SafeTorch("torch")
    checkpoint.load_url = safe_url_load


def _is_installed(package: str) -> bool:
    if version_of(package) is not None:
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _installed_path(package: str) -> str:
    """Folder of a package, by import name or by distribution name (``mmcv-lite``)."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        words = (metadata.distribution(package).read_text("top_level.txt") or "").split()
        spec = importlib.util.find_spec(words[0]) if words else None
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is installed, but its folder cannot be determined.")
    return str(Path(spec.origin).parent)


def install_package_lookup() -> None:
    """Let MMEngine find packages (``mmdet::...``) without ``pkg_resources``, which setuptools 82 removed."""
    for name in ("mmengine.utils.package_utils", "mmengine.utils", "mmengine.config.config", "mmengine.hub.hub"):
        module = importlib.import_module(name)
        for function, ours in (("is_installed", _is_installed), ("get_installed_path", _installed_path)):
            if hasattr(module, function):
                setattr(module, function, ours)


def install_recomputation() -> None:
    """Make MMDetection's ``num_cp`` use torch's activation checkpointing instead of fairscale's."""
    for name in ("detr_layers", "deformable_detr_layers", "grounding_dino_layers"):
        module: Any = importlib.import_module(f"mmdet.models.layers.transformer.{name}")
        if module.checkpoint_wrapper is None:
            module.checkpoint_wrapper = recomputed


def recomputed(module: Any) -> Any:
    """The same module with activation checkpointing; parameter names do not change."""
    import torch
    from torch.utils.checkpoint import checkpoint

    kind = type(module)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *args, **options)
        return checkpoint(kind.forward, self, *args, use_reentrant=False, **options)

    # A subclass rather than a patched method, which copies of the module would share.
    module.__class__ = type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})
    return module


def version_of(distribution: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def allow_numpy_float() -> None:
    """Restore ``np.float``, which lvis 0.5.3 uses and numpy removed in 1.24."""
    import numpy as np

    if not hasattr(np, "float"):
        np.float = float  # type: ignore[attr-defined]


def install_language_routes() -> None:
    """Make MMDetection's BERT (Grounding DINO, GLIP) run on transformers 5; a no-op for 4 or without the package.

    Version 5 removed ``batch_encode_plus`` from tokenizers and no longer accepts 3-D attention masks.
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
            # An additive mask works with every attention implementation, a bool mask only with some.
            hidden = torch.zeros(mask.shape, device=mask.device).masked_fill(
                ~mask.bool(), torch.finfo(torch.float32).min
            )
            options = {**options, "attention_mask": hidden.unsqueeze(1)}
        return args, options

    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.model.register_forward_pre_hook(with_heads, with_kwargs=True)

    BertEncoder.__init__ = init
