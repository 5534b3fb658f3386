#!/usr/bin/env python
"""``smartclip-det study multi-dataset``, under the name of its file."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # A checkout works without being installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from smartclip_det.cli import run_verb

    run_verb("study multi-dataset")
