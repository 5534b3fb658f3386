"""An image tower or a detector as an ONNX file, checked against PyTorch.

    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --encoder W.pt --texts "red mug" dog --out dogs.onnx
    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --encoder W.pt --bank-input --vocabulary coco_80
    smartclip-det export --encoder smartclip-b16 --size 448 448 --out tower.onnx
    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --texts dog --check photos/ --bench --openvino

One-stage and two-stage detectors are exported whole, from the normalised picture to boxes after NMS; a mask head is
not. The names are folded in, or with --bank-input the file is fed with their embeds and masks, which go to a .npz
beside it: any number of names. Without --config it is the image tower: pooled vector and dense map. Names,
preprocessing, policy and hashes are in the file's metadata.

The file is run by onnxruntime on pictures (--check, or drawn scenes) and compared with PyTorch: exit code 1 where
something differs by more than 1e-4 (2e-2 with --fp16), or a box has no partner.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_out, at_least
from smartclip_det.core.words import DENSE_MODES, TEMPLATE_SETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options."""
    add = parser.add_argument
    add("--format", choices=("onnx",), default="onnx", help="of the file")
    add("--config", help="of a one-stage or two-stage detector: a file, or a known name; without, the image tower")
    add("--checkpoint", help="its weights; without, heads are random")
    add("--encoder", help="towers: a name of public weights or a file; with --config its towers.checkpoint")
    add("--arch", help="without --config: a named architecture with random weights")
    add("--texts", nargs="+", default=[], help="names, one per argument")
    add("--vocabulary", help="names: a known name (coco_80, ...), .txt with one a line, or .json list")
    add("--templates", choices=TEMPLATE_SETS, default="photo", help="prompts of a name")
    add("--bank-input", action="store_true", help="embeds and masks are inputs; those of the names go to a .npz")
    add("--size", nargs=2, type=at_least(1), metavar=("H", "W"), help="input in pixels; default: the model's own")
    add("--threshold", type=float, help="lowest score in the answer; default: the config's")
    add("--dense-mode", choices=DENSE_MODES, default="value", help="without --config: last block of the dense map")
    add("--fp16", action="store_true", help="tower and neck in half precision; boxes and scores stay fp32")
    add("--check", nargs="+", type=Path, default=[], help="pictures or folders to compare on; default: drawn scenes")
    add("--openvino", action="store_true", help="run the same file in OpenVINO, too")
    add("--bench", action="store_true", help="time PyTorch and the file on the first picture, in turns")
    add("--rounds", type=at_least(1), default=10, help="with --bench: measured runs of each")
    add_cfg_options(parser)
    add_out(parser, "work_dirs/export/model.onnx", "file to write; a JSON of differences and times beside it")


def run(args: argparse.Namespace) -> int:
    """Export, compare, time; exit code 1 where the file differs from PyTorch."""
    from smartclip_det.apis.exporting.exporting import ExportOptions, export_onnx
    from smartclip_det.models.vocabulary import resolve_names
    from smartclip_det.protocols.stamp import protocol_stamp, write_results
    from smartclip_det.studies.benchmarks.measuring import in_turns, show

    names = resolve_names(args.vocabulary) if args.vocabulary else []
    told = {k: v for k, v in vars(args).items() if k in ExportOptions.__dataclass_fields__}
    told |= {"texts": [*args.texts, *names], "size": args.size and tuple(args.size)}
    found = export_onnx(ExportOptions(**told))
    metrics = {f"{c.runtime}_{k}": v for c in found.comparisons for k, v in c.largest.items()}
    metrics |= {f"{c.runtime}_unmatched": c.unmatched for c in found.comparisons}
    times = in_turns(found.runs, args.rounds) if args.bench else {}
    print("\n".join(line for c in found.comparisons for line in c.lines()))
    if times:
        show("from a picture to its answer", times, "pytorch")
    stamp = protocol_stamp("export", pictures=found.pictures, **found.metadata)
    print(f"written: {found.path}" + (f", {found.bank}" if found.bank else ""))
    print(f"written: {write_results(args.out.with_suffix('.json'), stamp, metrics, seconds=times)}")
    failed = [c.runtime for c in found.comparisons if not c.passed]
    if failed:
        print(f"FAILED: {', '.join(failed)}: more than {found.comparisons[0].tolerance:g}, or boxes without a partner.")
    return int(bool(failed))
