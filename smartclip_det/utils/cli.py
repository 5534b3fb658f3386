"""Shared by all tools: readable errors, exit codes and metric tables."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from smartclip_det.core.errors import UserError

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_SMALLER = """To reduce memory, cheapest first:
  training    --amp; --cfg-options train_dataloader.batch_size=1 (with --auto-scale-lr); for trained towers
              model.backbone.checkpointing=True
  testing     --cfg-options test_dataloader.batch_size=1; model.test_cfg.rcnn.class_chunk=1024 for large vocabularies
  images      smaller ones: --cfg-options test_dataloader.dataset.pipeline.1.scale='(640,640)'
  encoding    a smaller --dense-size; fewer --views
  evaluation  predictions as .safetensors (tools/test.py --out pred.safetensors)"""


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's main: a UserError is one line on stderr and exit code 2, an interrupt exit code 130."""
    code = _exit_code(main)
    _leave_process_group()
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        # A data-loader worker sends its traceback as text; the last line is the message.
        print(f"error: {str(error).rsplit('UserError: ', 1)[-1].strip()}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        print(
            f"error: out of memory ({str(error).splitlines()[0] if str(error) else 'size unknown'}).\n{_SMALLER}",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        # The reader of stdout (head, less) has exited; files on disk do not depend on it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _leave_process_group() -> None:
    """Destroy the process group while the interpreter is still running.

    Gloo threads hold the tensors of the last collective for a moment. If one frees them during interpreter shutdown,
    the process aborts (exit code -6) and the launcher kills the others, finished or not.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    # Wrapped models also hold the group and are freed late, as part of runner and hook reference cycles.
    gc.collect()
    distributed.destroy_process_group()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Aligned ``name value`` lines with six decimals; -1 (undefined) is shown as ``n/a``."""
    width = max((len(k) for k in metrics), default=0)
    return "\n".join(f"  {k:{width}s}  {'n/a' if v == -1 else f'{v:.6f}'}" for k, v in metrics.items())
