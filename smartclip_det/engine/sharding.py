"""FSDP with MMEngine's ``FlexibleRunner``: a strategy for torch 2, and access to full parameters between steps.

Needs neither mmdet nor mmcv.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine._strategy import FSDPStrategy
from mmengine.dist import barrier, get_rank, get_world_size, is_main_process
from mmengine.optim import BaseOptimWrapper
from mmengine.registry import STRATEGIES
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from smartclip_det.core.errors import UserError
from smartclip_det.engine.atomic_files import save_whole

_WRAPPED = "_fsdp_wrapped_module."


@contextmanager
def whole_parameters(model: nn.Module, writeback: bool = False) -> Iterator[None]:
    """Gather parameters sharded by FSDP, for work on parts of a model between steps; a no-op for other models.

    All processes must enter and leave; what they do inside may differ.

    Args:
        model: the runner's model.
        writeback: keep modifications of parameters made inside.
    """
    if not isinstance(model, FullyShardedDataParallel):
        yield
        return
    for part in model.modules():
        # Hashes are keyed by address and version, which FSDP reuses for storage that it frees and allocates again.
        if hasattr(part, "forget_hash"):
            part.forget_hash()
    with FullyShardedDataParallel.summon_full_params(model, writeback=writeback):
        yield


# Replaces MMEngine's strategy under the same name. MMEngine 0.10.7 passes optimizer states to torch in torch 2.0's
# argument order, does not write atomically, and in local form asks FSDP for states that use_orig_params does not have.
@STRATEGIES.register_module(name="FSDPStrategy", force=True)
class ShardedStrategy(FSDPStrategy):
    """MMEngine's FSDP strategy with atomic checkpoints that can be resumed; also runs on CPUs (gloo).

    ``state_dict_cfg='local'``: a folder with one file per process, for the same number of processes; ``'full'``: a
    single file, for any number of processes and for runs without FSDP.
    """

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        os.environ.setdefault("LOCAL_RANK", "0")
        if not torch.cuda.is_available():
            self.model_wrapper = {
                "type": "MMFullyShardedDataParallel",
                **(self.model_wrapper or {}),
                "device_id": torch.device("cpu"),
            }
            # With a model on the CPU, torch 2.11 frees offloaded tensors before they are copied.
            for config in (self.state_dict_config, self.optim_state_dict_config):
                config.offload_to_cpu = False
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> BaseOptimWrapper:
        """Reject options that would be computed on each process's shard only.

        Raises:
            UserError: for ``clip_grad``.
        """
        if isinstance(optim_wrapper, Mapping) and optim_wrapper.get("clip_grad"):
            raise UserError(
                "optim_wrapper.clip_grad with FSDP would clip each process's shard by its own norm: "
                "remove it, or train with DDP."
            )
        return super().build_optim_wrapper(optim_wrapper, model)

    def model_state_dict(self) -> dict[str, Any]:
        """Full tensors on rank 0 (full), or the shards of this process (local), under the model's own names."""
        if self._is_full_state_dict():
            return self.model.state_dict()
        return {k: v.detach().cpu().clone() for k, v in self._shards().items()}

    def _shards(self) -> dict[str, torch.Tensor]:
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return {k.replace(_WRAPPED, ""): v for k, v in named}

    def load_model_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = False, **_: Any) -> None:
        """Inverse of :meth:`model_state_dict`; both forms also accept full tensors."""
        if self._is_full_state_dict():
            self.model.load_state_dict(state_dict, strict=strict)
            return
        shards = self._shards()
        if any(k in state_dict and state_dict[k].shape != v.shape for k, v in shards.items()):
            with whole_parameters(self.model, writeback=True):
                self.model.module.load_state_dict(state_dict, strict=strict)
            return
        missing = sorted(set(shards) - set(state_dict))
        if missing:
            raise UserError(f"The checkpoint lacks {len(missing)} of the model's tensors, e.g. {missing[0]}.")
        with torch.no_grad():
            for name, value in shards.items():
                value.copy_(state_dict[name])

    def optim_state_dict(self) -> dict[str, Any]:
        """Full states by name on rank 0 (full), or those of this process's shards (local)."""
        if not self._is_full_state_dict():
            return self.optim_wrapper.state_dict()
        return FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`optim_state_dict`."""
        if self._is_full_state_dict():
            state_dict = FullyShardedDataParallel.optim_state_dict_to_load(
                self.model, self.optim_wrapper.optimizer, state_dict
            )
        self.optim_wrapper.load_state_dict(state_dict)

    def save_checkpoint(
        self,
        filename: str,
        *,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        extra_ckpt: dict[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Write a file (full) or a folder (local); arguments as in MMEngine's."""
        content: dict[str, Any] = {"state_dict": self.model_state_dict()}
        if save_optimizer and hasattr(self, "optim_wrapper"):
            content["optimizer"] = self.optim_state_dict()
        if save_param_scheduler and hasattr(self, "param_schedulers"):
            content["param_schedulers"] = self.scheduler_state_dict()
        content.update(extra_ckpt or {})
        facts = {"seed": self.seed, "time": time.strftime("%Y%m%d_%H%M%S"), "mmengine": mmengine.__version__}
        content["meta"] = {**content.get("meta", {}), **facts, "processes": get_world_size()}
        if callback is not None:
            callback(content)
        path = Path(filename)
        if self._is_full_state_dict():
            if is_main_process():
                save_whole(content, path)
            return
        part = path.with_name(path.name + ".part")
        save_whole(content, part / f"rank{get_rank()}.pth")
        barrier()
        if is_main_process():
            if path.is_dir():
                shutil.rmtree(path)
            part.rename(path)
        barrier()

    def load_checkpoint(self, filename: str, **options: Any) -> dict[str, Any]:
        """Read a file, or this process's file of a folder.

        Raises:
            UserError: if a folder was written by another number of processes, or in the other form.
        """
        path = Path(filename)
        if path.is_dir():
            count = len(list(path.glob("rank*.pth")))
            if self._is_full_state_dict():
                raise UserError(f"{path} is a folder of {count} shards; load it with strategy.state_dict_cfg=local.")
            if count != get_world_size():
                raise UserError(
                    f"{path} was written by {count} processes and needs as many; this run has {get_world_size()}. "
                    "To change the number of processes, save with strategy.state_dict_cfg=full."
                )
            filename = str(path / f"rank{get_rank()}.pth")
        return super(FSDPStrategy, self).load_checkpoint(filename, **options)

    def resume(self, filename: str, **options: Any) -> dict[str, Any]:
        """Resume in the form that was saved."""
        if not self._is_full_state_dict() and not Path(filename).is_dir():
            raise UserError(f"{filename} is a single full file; resume from it with strategy.state_dict_cfg=full.")
        return super().resume(filename, **options)
