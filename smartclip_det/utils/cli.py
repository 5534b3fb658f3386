"""What every tool shares: readable errors, exit codes, and number tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from smartclip_det.core.errors import UserError

_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")
_SMALLER = """What needs less, in the order of what it costs:
  training    --amp; --cfg-options train_dataloader.batch_size=1 (with --auto-scale-lr); for trained towers
              model.backbone.checkpointing=True
  testing     --cfg-options test_dataloader.batch_size=1; model.test_cfg.rcnn.class_chunk=1024 for large vocabularies
  encoding    a smaller --dense-size; fewer --views
  evaluation  predictions as .safetensors (tools/test.py --out pred.safetensors)"""


def run_tool(main: Callable[[], int | None]) -> None:
    """Run a tool's main: bad input is one line on stderr and exit code 2, an interrupt 130."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        print(f"error: out of memory ({str(error).splitlines()[0] if str(error) else 'no size told'}).\n{_SMALLER}",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)
    except BrokenPipeError:
        # The reader of our output (head, less) left; what was promised on disk is checked by its own exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Aligned lines of ``name value`` with six digits; -1 (nothing to measure) reads ``n/a``."""
    width = max((len(k) for k in metrics), default=0)
    return "\n".join(f"  {k:{width}s}  {'n/a' if v == -1 else f'{v:.6f}'}" for k, v in metrics.items())
