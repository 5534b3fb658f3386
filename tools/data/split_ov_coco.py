#!/usr/bin/env python
"""``smartclip-det data split-ov-coco``, under the name of its file."""

from smartclip_det.cli import run_verb

if __name__ == "__main__":
    run_verb("data split-ov-coco")
