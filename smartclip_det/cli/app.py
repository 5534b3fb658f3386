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

from smartclip_det.cli.options import add_device, at_least, templates_of
from smartclip_det.core.words import BOX_SOURCES


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--config", help="config of an open-vocabulary detector or grounding head: a file or a packaged name")
    add("--checkpoint", help="weights of --config")
    add("--encoder", help="towers: a file or a name of public weights; overrides towers.checkpoint of --config")
    add("--boxes", help=f"box source without --config: {', '.join(BOX_SOURCES)}, or a file")
    add("--templates", nargs="+", help="class-name prompts: a template set or own templates; default photo")
    add("--toy", type=Path, default=Path("work_dirs/toy"), help="output folder of make toy; default work_dirs/toy")
    add("--data", type=Path, default=Path("data/toy"), help="toy world, for the gallery; default data/toy")
    add("--samples", nargs="+", type=Path, default=[], help="image files or folders for the gallery")
    add("--host", default="127.0.0.1", help="address to serve on; default 127.0.0.1 (this machine only)")
    add("--port", type=at_least(1), help="default: the first free port from 7860")
    add("--share", action="store_true", help="also create a public link through gradio's relay")
    add("--max-upload", type=at_least(1), default=20, metavar="MB", help="maximum size of an upload; default 20")
    add_device(parser)


def run(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    from smartclip_det.apis.app.page import PageOptions, serve
    from smartclip_det.apis.app.sources import AppOptions

    serve(
        AppOptions(
            config=args.config,
            checkpoint=args.checkpoint,
            encoder=args.encoder,
            boxes=args.boxes,
            templates=templates_of(args.templates) if args.templates else None,
            device=args.device,
            toy=args.toy,
            data=args.data,
            samples=args.samples,
        ),
        PageOptions(host=args.host, port=args.port, share=args.share, max_upload=args.max_upload),
    )
