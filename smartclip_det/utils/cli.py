"""What every tool shares: readable errors, exit codes, and number tables."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from smartclip_det.core.errors import UserError

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_SMALLER = """What needs less, in the order of what it costs:
  training    --amp; --cfg-options train_dataloader.batch_size=1 (with --auto-scale-lr); for trained towers
              model.backbone.checkpointing=True
  testing     --cfg-options test_dataloader.batch_size=1; model.test_cfg.rcnn.class_chunk=1024 for large vocabularies
  images      smaller ones: --cfg-options test_dataloader.dataset.pipeline.1.scale='(640,640)'
  encoding    a smaller --dense-size; fewer --views
  evaluation  predictions as .safetensors (tools/test.py --out pred.safetensors)"""


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run a tool's main: bad input is one line on stderr and exit code 2, an interrupt 130."""
    code = _exit_code(main)
    _leave_process_group()
    sys.exit(code)


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        # A process that loads data sends its traceback as text; the last line of it is ours.
        print(f"error: {str(error).rsplit('UserError: ', 1)[-1].strip()}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        print(
            f"error: out of memory ({str(error).splitlines()[0] if str(error) else 'no size told'}).\n{_SMALLER}",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        # The reader of our output (head, less) left; what was promised on disk is checked by its own exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _leave_process_group() -> None:
    """Leave the process group of a launcher while Python still runs.

    Gloo's threads hold the tensors of the last collective for a moment. One that frees them while the interpreter is
    already going down aborts the process (exit code -6), and the launcher then kills the others, finished or not.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    # Wrapped models hold the group as well, and die late in the circles that runners and their hooks are.
    gc.collect()
    distributed.destroy_process_group()


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Aligned lines of ``name value`` with six digits; -1 (nothing to measure) reads ``n/a``."""
    width = max((len(k) for k in metrics), default=0)
    return "\n".join(f"  {k:{width}s}  {'n/a' if v == -1 else f'{v:.6f}'}" for k, v in metrics.items())
