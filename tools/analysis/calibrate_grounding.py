#!/usr/bin/env python
"""Same as ``smartclip-det study calibrate``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Allow running from a checkout without installation.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from smartclip_det.cli import run_verb

    run_verb("study calibrate")
