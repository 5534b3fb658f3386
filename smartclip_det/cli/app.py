"""Try a predictor on a page in the browser: detection, grounding, and the mask of each phrase.

    smartclip-det app                                                   # detector and scenes of make toy
    smartclip-det app --encoder smartclip-b16 --boxes torchvision       # without training
    smartclip-det app --config CONFIG --checkpoint epoch_3.pth --samples photos/

Requires gradio: pip install "smartclip_det[app]". The page is served on the loopback address, without a public link
unless --share is given. Uploads are stored in a temporary folder that is removed on exit; no other file is served. Each
answer comes with the command line and the Python code that reproduce it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_predictor, at_least, filled, templates_of


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    predictor = parser.add_argument_group("predictor; default: the detector of make toy")
    add_predictor(predictor, what="an open-vocabulary detector or grounding head", cfg_options=False)
    add = predictor.add_argument
    add("--templates", nargs="+", help="class-name prompts: a template set or own templates; default photo")
    add("--toy", type=Path, help="output folder of make toy; default work_dirs/toy, or else work_dirs/toy_quick")

    add = parser.add_argument_group("gallery").add_argument
    add("--data", type=Path, help="toy world, for the gallery; default: that of the toy run")
    add("--samples", nargs="+", type=Path, default=[], help="image files or folders for the gallery")

    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", help="address to serve on; default 127.0.0.1 (this machine only)")
    add("--port", type=at_least(1), help="default: the first free port from 7860")
    add("--share", action="store_true", help="also create a public link through gradio's relay")
    add("--max-upload", type=at_least(1), default=20, metavar="MB", help="maximum size of an upload; default 20")


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from smartclip_det.apis.app.page import PageOptions, serve
    from smartclip_det.apis.app.sources import AppOptions

    templates = templates_of(args.templates) if args.templates else None
    serve(filled(AppOptions, args, templates=templates), filled(PageOptions, args))
