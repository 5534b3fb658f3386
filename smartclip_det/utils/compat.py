"""Versions of libraries: the one file that knows where libraries disagree.

Each problem gives one readable error with the command that mends it.
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
#: Distribution and exact version that were tested together (pyproject.toml pins the same).
TESTED = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "mmcv-lite": "2.1.0",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmengine": "0.10.7",
}


def check_stack() -> None:
    """Raise one readable error when MMCV, its operators, MMDetection or MMEngine are missing or unfit."""
    for module, distribution in (("mmengine", "mmengine"), ("mmcv", "mmcv-lite"), ("mmdet", "mmdet")):
        try:
            importlib.import_module(module)
        except (ImportError, AssertionError) as error:
            raise UserError(
                f"{module} cannot be used ({error}). Detectors and trained grounding heads need it. Tested: "
                f"{distribution}=={TESTED[distribution]}. Run `{INSTALL_COMMAND}`, or in a checkout `{SETUP_COMMAND}`."
            ) from error
    operators_in_force()


def operators_in_force() -> str:
    """Where the operators come from that MMDetection calls: our own by torchvision and torch, or compiled ones.

    Raises:
        UserError: when compiled ones are installed and cannot be loaded, with the commands that mend it.
    """
    try:
        extension = importlib.import_module(finder.EXTENSION)
    except ImportError as error:
        raise UserError(
            f"mmcv's compiled operators cannot be loaded ({error}); they were compiled for another torch or Python. "
            f"Compile them again by `{finder.COMPILED_COMMAND}`, or run `{SETUP_COMMAND}`: nothing is compiled then."
        ) from error
    if finder.MARK in vars(extension):
        return "by torchvision and torch"
    cuda = extension.get_compiling_cuda_version()
    return "compiled, CPU only" if cuda in ("not available", "") else f"compiled, CUDA {cuda}"


class _SafeTorch(ModuleType):
    """torch as MMEngine's reader of checkpoints sees it: ``load`` runs no pickled code."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    @staticmethod
    def load(file: Any, map_location: Any = None, **_: Any) -> Any:
        """Plain data only, whatever the caller asks for."""
        from smartclip_det.utils.safe_load import safe_torch_load

        return safe_torch_load(file, map_location if map_location is not None else "cpu")


def install_safe_loading() -> None:
    """Make MMEngine load checkpoints, of files, stores and addresses, without running pickled code.

    MMEngine 0.10.7 leaves ``weights_only`` to torch's default, which since 2.6 refuses MMEngine's own histories, and
    sets it to False for addresses; the fork onedl-mmengine tries again without it. A foreign class is an error here.
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
    """Folder of a package, by its import name or by the name of its distribution (``mmcv-lite``)."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        words = (metadata.distribution(package).read_text("top_level.txt") or "").split()
        spec = importlib.util.find_spec(words[0]) if words else None
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is installed, but its folder cannot be told.")
    return str(Path(spec.origin).parent)


def install_package_lookup() -> None:
    """Let MMEngine find packages (``mmdet::...``) without ``pkg_resources``, which setuptools 82 has no more."""
    for name in ("mmengine.utils.package_utils", "mmengine.utils", "mmengine.config.config", "mmengine.hub.hub"):
        module = importlib.import_module(name)
        for function, ours in (("is_installed", _is_installed), ("get_installed_path", _installed_path)):
            if hasattr(module, function):
                setattr(module, function, ours)


def install_recomputation() -> None:
    """Give MMDetection's ``num_cp`` torch's checkpointing, where it would ask for fairscale."""
    for name in ("detr_layers", "deformable_detr_layers", "grounding_dino_layers"):
        module: Any = importlib.import_module(f"mmdet.models.layers.transformer.{name}")
        if module.checkpoint_wrapper is None:
            module.checkpoint_wrapper = recomputed


def recomputed(module: Any) -> Any:
    """The same module, which computes its forward pass again in the backward pass; names of parameters stay."""
    import torch
    from torch.utils.checkpoint import checkpoint

    kind = type(module)

    def forward(self: Any, *args: Any, **options: Any) -> Any:
        if not (self.training and torch.is_grad_enabled()):
            return kind.forward(self, *args, **options)
        return checkpoint(kind.forward, self, *args, use_reentrant=False, **options)

    # A class of its own and not a patched method, which copies of the module would share.
    module.__class__ = type(f"Recomputed{kind.__name__}", (kind,), {"forward": forward})
    return module


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
