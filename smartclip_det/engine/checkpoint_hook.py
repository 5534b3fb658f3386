"""Small checkpoints: the trained weights, and the hash of the frozen towers they were trained with."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from smartclip_det.engine.atomic_files import save_whole
from smartclip_det.engine.launch import frozen_towers, unwrapped


def trainable_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict without the weights of frozen image towers; their hashes (``_extra_state``) are kept."""
    frozen = frozen_towers(model)
    return {k: v for k, v in model.state_dict().items() if not (frozen and k.startswith(frozen))}


@HOOKS.register_module()
class TrainableCheckpointHook(Hook):
    """Writes ``epoch_N.trainable.pth`` next to the full checkpoint of an epoch, and keeps only the latest.

    ``tools/test.py`` and the Predictor load it like a full checkpoint. The towers come from the config; other towers
    than those used in training are rejected.

    Args:
        interval: epochs between files; 0 disables the hook.
    """

    priority = "VERY_LOW"

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval
        self._last: Path | None = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Write the file, and remove the previous one."""
        model = unwrapped(runner.model)
        state = trainable_state(model)
        if not self.interval or (runner.epoch + 1) % self.interval or len(state) == len(model.state_dict()):
            return
        if is_main_process():
            path = Path(runner.work_dir) / f"epoch_{runner.epoch + 1}.trainable.pth"
            meta = {"epoch": runner.epoch + 1, "iter": runner.iter, "trainable_only": True}
            save_whole({"meta": meta, "state_dict": {k: v.cpu() for k, v in state.items()}}, path)
            if self._last is not None:
                self._last.unlink(missing_ok=True)
            self._last = path
            runner.logger.info(f"Trained weights without the frozen tower: {path}")
