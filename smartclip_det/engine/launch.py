"""Starting runs: processes, mixed precision, learning-rate scaling, and the first and last lines of the log."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import AMP_DTYPES
from smartclip_det.engine.config import fit_norm_layers
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.config_files import find_config
from smartclip_det.utils.devices import bf16_pays
from smartclip_det.utils.env import versions
from smartclip_det.utils.safe_load import safe_torch_load

#: Full paths, so that a config need not import the modules that register them.
_GUARDS = ("smartclip_det.engine.finite_guard.FiniteGuardHook", "smartclip_det.engine.resuming.ResumeHook")

_CONSTRUCTOR = "smartclip_det.engine.optim.FusedConstructor"


def prepare(config: Config, config_path: str, work_dir: str | None, launcher: str) -> None:
    """Set work folder, launcher and machine-dependent settings, in place."""
    config.launcher = launcher
    config.work_dir = work_dir or config.get("work_dir") or str(Path("work_dirs") / find_config(config_path).stem)
    fit_norm_layers(config, distributed=launcher != "none")
    fit_global_batch(config, launcher)
    add_guards(config)
    if config.get("optim_wrapper"):
        config.optim_wrapper.setdefault("constructor", _CONSTRUCTOR)
    if launcher != "none" and not torch.cuda.is_available():
        start_gloo(launcher)
        if config.get("strategy"):
            return
        # By default MMEngine's wrapper expects a CUDA device id.
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
            "find_unused_parameters": config.get("find_unused_parameters", False),
        }


def add_guards(config: Config) -> None:
    """Add the hooks that every training needs, if the config does not have them."""
    hooks = [*(config.get("default_hooks") or {}).values(), *(config.get("custom_hooks") or [])]
    present = [h.get("type") for h in hooks if isinstance(h, Mapping)]
    missing = [path for path in _GUARDS if path not in present and path.rsplit(".", 1)[1] not in present]
    if missing and config.get("train_cfg"):
        config.custom_hooks = [*(config.get("custom_hooks") or []), *({"type": path} for path in missing)]


def fit_global_batch(config: Config, launcher: str) -> None:
    """Set the batch size per process from ``global_batch_size``, if the config has one."""
    joint = config.get("global_batch_size")
    if not joint or "train_dataloader" not in config:
        return
    sizes = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS", "mpi": "OMPI_COMM_WORLD_SIZE"}
    world = int(os.environ.get(sizes.get(launcher, ""), 1))
    if joint % world:
        raise UserError(f"global_batch_size={joint} is not a multiple of {world} processes.")
    config.train_dataloader.batch_size = joint // world


def check_strategy(config: Config) -> None:
    """Raise if the strategy cannot run on this machine.

    Raises:
        UserError: for DeepSpeed without CUDA devices or package, and for FSDP or DDP without a launcher.
    """
    name = (config.get("strategy") or {}).get("type")
    if name == "DeepSpeedStrategy" and not torch.cuda.is_available():
        raise UserError(f"strategy {name} needs CUDA devices, but there are none. DDP and FSDP also run on CPUs.")
    if name == "DeepSpeedStrategy" and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f'strategy {name} needs deepspeed: pip install "smartclip_det[deepspeed]".')
    if name in ("FSDPStrategy", "DDPStrategy") and config.launcher == "none":
        raise UserError(
            f"strategy {name} needs several processes: start it with tools/dist_train.sh (torchrun), "
            "or remove the strategy."
        )


def start_gloo(launcher: str) -> None:
    """Initialise the process group on CPUs; MMEngine's own initialisation calls CUDA even for gloo."""
    if torch.distributed.is_initialized():
        return
    if launcher != "pytorch":
        raise UserError(f"Without CUDA only --launcher pytorch is supported (torchrun); given {launcher}.")
    missing = [k for k in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if k not in os.environ]
    if missing:
        raise UserError(f"--launcher pytorch needs torchrun ({', '.join(missing)} not set). Use tools/dist_train.sh.")
    # Rank 0 may encode a large vocabulary while the other ranks wait.
    torch.distributed.init_process_group("gloo", timeout=timedelta(hours=2))


def enable_amp(config: Config, precision: str = "auto") -> None:
    """Enable mixed precision, in place.

    Args:
        config: training config.
        precision: ``bf16``: if the device supports it, otherwise float32; ``fp16``: with loss scaling, on CUDA;
            ``auto``: bf16, or fp16 on GPUs without it.

    Raises:
        UserError: for fp16 without CUDA, or an optimizer wrapper with its own precision.
    """
    wrapper, cuda = config.optim_wrapper, torch.cuda.is_available()
    if wrapper.get("type", "OptimWrapper") not in ("OptimWrapper", "AmpOptimWrapper", "BFloat16OptimWrapper"):
        raise UserError(f"--amp does not support the optimizer wrapper {wrapper.type}.")
    if check_choice("--amp-dtype", precision, AMP_DTYPES) == "fp16" and not cuda:
        raise UserError("--amp-dtype fp16 needs a CUDA device; bf16 runs on CPUs that support it.")
    for key in ("dtype", "loss_scale", "use_fsdp"):
        wrapper.pop(key, None)
    if precision == "fp16" or (precision == "auto" and cuda and not bf16_pays("cuda")):
        wrapper.update(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic")
    else:
        wrapper.type = "BFloat16OptimWrapper"


def enable_auto_scale(config: Config) -> None:
    """Scale the learning rate to the batch size, relative to the config's base batch size."""
    if not config.get("auto_scale_lr") or "base_batch_size" not in config.auto_scale_lr:
        raise UserError("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=N) in the config.")
    config.auto_scale_lr.enable = True


def log_opening(runner: Runner, config_path: str) -> None:
    """Log config, folder, parameters, seed and versions at the start of a run."""
    facts = {
        "config": config_path,
        "work_dir": runner.work_dir,
        "parameters": _parameter_counts(runner.model),
        "towers": _tower_source(runner.cfg),
        "seed": runner.seed,
        "versions": ", ".join(f"{k} {v}" for k, v in versions().items()),
    }
    print_log("\n".join(["smartclip_det run", *(f"  {k:11s} {v}" for k, v in facts.items())]), "current")


def _parameter_counts(model: torch.nn.Module | Mapping[str, Any]) -> str:
    """Numbers of trained and frozen parameters; a runner with a strategy builds its model later."""
    if not isinstance(model, torch.nn.Module):
        return "known after the strategy has built the model"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{trained:,} trained, {sum(p.numel() for p in model.parameters()) - trained:,} frozen"


def _tower_source(config: Config) -> str:
    """Source of the initial weights; random weights are marked clearly."""
    source = config.get("towers") or config.get("model", {}).get("towers") or {}
    if source.get("checkpoint"):
        return f"from {source['checkpoint']}"
    return f"RANDOM WEIGHTS ({source['arch']}): set towers.checkpoint to use pretrained ones" if source else "none"


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside a distributed wrapper."""
    return model.module if is_model_wrapper(model) else model


def frozen_towers(model: torch.nn.Module) -> tuple[str, ...]:
    """State-dict prefixes of frozen image towers, whose weights come from the config."""
    return tuple(
        f"{name}.image_tower."
        for name, part in model.named_modules()
        if getattr(part, "frozen", False) and hasattr(part, "tower_hash")
    )


def refuse_foreign_checkpoint(model: torch.nn.Module, path: str | Path) -> None:
    """Raise if a checkpoint lacks parameters of a model; MMEngine would only log it and keep random weights."""
    content = safe_torch_load(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    state = {k.removeprefix("module."): v for k, v in state.items()}
    if hasattr(model, "adopted_state"):
        state = model.adopted_state(state)
    # The weights of a frozen tower come from the config; its hash is checked when the checkpoint is loaded.
    known = tuple(f for f in frozen_towers(model) if f.replace("image_tower.", "_extra_state") in state)
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    own = {k: v for k, v in own.items() if k in state or not k.startswith(known)} if known else own
    wrong = [k for k, v in own.items() if getattr(state.get(k), "shape", None) != v.shape]
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(
            f"{path} does not match the model of this config: {len(wrong)} of {len(own)} tensors are missing or "
            f"have another shape ({shown})."
        )
    broken = [k for k in own if k in state and state[k].is_floating_point() and not torch.isfinite(state[k]).all()]
    if broken:
        raise UserError(f"{path} has NaN or infinite values in {len(broken)} tensors, e.g. {broken[0]}.")


def log_closing(runner: Runner, config_path: str, options: Mapping[str, Any] | None = None) -> None:
    """Log where the weights are and how to test them, at the end of a run."""
    pointer = Path(runner.work_dir) / "last_checkpoint"
    last = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else "CHECKPOINT"
    command = shlex.join(["smartclip-det", "test", config_path, last, *format_options(options or {})])
    print_log(f"Weights: {last}\nTest:    {command}", "current", logging.INFO)
