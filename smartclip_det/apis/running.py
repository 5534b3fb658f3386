"""Training and testing with an MMEngine config."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import barrier
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from smartclip_det.core.errors import UserError
from smartclip_det.core.scoring_policy import ScoringPolicy
from smartclip_det.engine.atomic_files import finish_writes, last_good_checkpoint
from smartclip_det.engine.config import load_config
from smartclip_det.engine.launch import (
    check_strategy,
    enable_amp,
    enable_auto_scale,
    log_closing,
    log_opening,
    prepare,
    refuse_foreign_checkpoint,
    unwrapped,
)
from smartclip_det.protocols.stamp import file_hash

#: Metrics that write predictions, and the model facts that go into their stamp.
OURS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "OpenVocabMetric": lambda model: {"policy": ScoringPolicy.from_dict(model.get("policy")).to_dict()},
    "ReferringMetric": lambda model: {"mask_mode": model.mask_mode, "towers": dict(model.towers)},
}


@dataclass(frozen=True)
class RunOptions:
    """Options shared by training and testing.

    Attributes:
        config: config file, or the name of a packaged config.
        work_dir: folder for logs and checkpoints; None: the config's, or ``work_dirs/CONFIG_NAME``.
        cfg_options: config overrides.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
        local_rank: local rank of this process, if the launcher does not set it in the environment.
    """

    config: str
    work_dir: str | None = None
    cfg_options: Mapping[str, Any] | None = None
    launcher: str = "none"
    local_rank: int = 0


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of training.

    Attributes:
        resume: checkpoint to resume from; ``auto``: the last one in the work folder.
        amp: mixed precision.
        amp_dtype: ``auto``, ``bf16`` or ``fp16``, see ``launch.enable_amp``; a value other than ``auto`` implies
            ``amp``.
        auto_scale_lr: scale the learning rate to the global batch size.
    """

    resume: str | None = None
    amp: bool = False
    amp_dtype: str = "auto"
    auto_scale_lr: bool = False


@dataclass(frozen=True)
class TestOptions(RunOptions):
    """Options of testing.

    Attributes:
        checkpoint: checkpoint file.
        out: output predictions; metrics go to a ``.metrics.json`` of the same name.
        show_dir: folder for images with drawn detections.
        control: ``none``, or ``text_shuffled``: score each class with the text of another one.
    """

    __test__ = False

    checkpoint: str = ""
    out: str | None = None
    show_dir: str | None = None
    control: str = "none"


def train(options: TrainOptions) -> None:
    """Build the runner and train.

    Raises:
        UserError: for invalid configs, checkpoints and options.
    """
    os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    config = load_config(options.config, options.cfg_options)
    prepare(config, options.config, options.work_dir, options.launcher)
    if options.amp or options.amp_dtype != "auto":
        enable_amp(config, options.amp_dtype)
    if options.auto_scale_lr:
        enable_auto_scale(config)
    resume = options.resume
    if resume and resume != "auto" and not Path(resume).exists():
        raise UserError(f"No checkpoint at {resume} to resume from.")
    if resume:
        config.resume = True
        config.load_from = str(last_good_checkpoint(config.work_dir)) if resume == "auto" else resume
    check_strategy(config)
    # FSDP and DeepSpeed are MMEngine strategies, which only FlexibleRunner supports.
    runner = (FlexibleRunner if config.get("strategy") else Runner).from_cfg(config)
    if resume and isinstance(runner.model, torch.nn.Module):
        refuse_foreign_checkpoint(unwrapped(runner.model), config.load_from)
    log_opening(runner, options.config)
    try:
        runner.train()
    except RuntimeError as error:
        mixed = config.optim_wrapper.get("type") == "BFloat16OptimWrapper"
        if mixed and "not implemented for 'BFloat16'" in str(error):
            raise UserError(
                f"This model has an operator without bf16 support on this device ({error}); train without --amp."
            ) from error
        raise
    finally:
        finish_writes()
    # One process writes; the others must not look for its files before they are whole.
    barrier()
    log_closing(runner, options.config, options.cfg_options)


def test(options: TestOptions) -> None:
    """Build the runner and test.

    Raises:
        UserError: for invalid configs and checkpoints, an evaluator that cannot write predictions, or a control of a
            model without a vocabulary.
    """
    os.environ.setdefault("LOCAL_RANK", str(options.local_rank))
    config = load_config(options.config, options.cfg_options)
    prepare(config, options.config, options.work_dir, options.launcher)
    if not Path(options.checkpoint).is_file():
        raise UserError(f"No checkpoint at {options.checkpoint}. smartclip-det train prints where it wrote them.")
    config.load_from = options.checkpoint
    evaluator = config.test_evaluator
    if options.out:
        if evaluator.get("type") not in OURS:
            raise UserError(f"--out needs a test_evaluator of type {' or '.join(OURS)}.")
        evaluator.out_file = options.out
        evaluator.metrics_file = str(Path(options.out).with_suffix(".metrics.json"))
    if evaluator.get("type") in OURS:
        evaluator.stamp = {
            "checkpoint_sha256": file_hash(options.checkpoint),
            "config": options.config,
            **OURS[evaluator.type](config.model),
            "seed": config.get("randomness", {}).get("seed"),
        }
    if options.show_dir:
        config.default_hooks.visualization.update(draw=True, test_out_dir=options.show_dir)
    if options.control != "none":
        set_control(config, options.control)
    runner = Runner.from_cfg(config)
    refuse_foreign_checkpoint(unwrapped(runner.model), options.checkpoint)
    runner.test()
    if options.out:
        runner.logger.info(f"Predictions: {options.out}\nMetrics:     {evaluator.metrics_file}")


def set_control(config: Config, control: str) -> None:
    """Set the control of the hook that encodes the vocabulary.

    Raises:
        UserError: for a config without this hook.
    """
    hooks = [h for h in config.get("custom_hooks") or [] if h.get("type") == "VocabularyHook"]
    if not hooks:
        raise UserError(
            f"--control {control} permutes the texts of classes and needs a detector: the config has no "
            "VocabularyHook. For phrases, use smartclip-det ground --control."
        )
    for hook in hooks:
        hook.control = control
