"""Export an image tower or a detector to ONNX and check the file against PyTorch.

    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --encoder W.pt --texts "red mug" dog --out dogs.onnx
    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --encoder W.pt --bank-input --vocabulary coco_80
    smartclip-det export --encoder smartclip-b16 --size 448 448 --out tower.onnx
    smartclip-det export --config CONFIG --checkpoint epoch_3.pth --texts dog --check photos/ --bench --openvino

One-stage and two-stage detectors are exported completely, from the normalised image to boxes after NMS, except for a
mask head. Class names are stored in the file, or with --bank-input their embeds and masks are inputs (written to a .npz
next to the file), for any number of names. Without --config the image tower is exported: pooled vector and dense map.
Names, preprocessing, policy and hashes are in the file's metadata.

onnxruntime runs the file on images (--check, or toy scenes) and the results are compared with PyTorch. The exit code is
1 if a difference is above 1e-4 or a detection has no counterpart (with --fp16: 2e-2, or 2 % of the detections).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smartclip_det.cli.options import add_cfg_options, add_names, add_out, at_least, filled, names_of
from smartclip_det.core.words import DENSE_MODES, TEMPLATE_SETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this verb."""
    add = parser.add_argument
    add("--format", choices=("onnx",), default="onnx", help="file format")
    add(
        "--config",
        help="config of a one-stage or two-stage detector, a file or a known name; default: export the image tower",
    )
    add("--checkpoint", help="detector weights; default: random heads")
    add("--encoder", help="towers, a name of public weights or a file; with --config its towers.checkpoint")
    add("--arch", help="without --config: architecture with random weights")
    add_names(parser, "class names")
    add("--templates", choices=TEMPLATE_SETS, default="photo", help="prompt templates")
    add("--bank-input", action="store_true", help="make embeds and masks inputs; rows of the names go to a .npz")
    add(
        "--size",
        nargs=2,
        type=at_least(1),
        metavar=("H", "W"),
        help="input size in pixels; default: that of the config or tower",
    )
    add("--threshold", type=float, help="minimum score of a detection; default: the config's")
    add(
        "--dense-mode",
        choices=DENSE_MODES,
        default="value",
        help="without --config: how the last block computes the dense map",
    )
    add("--fp16", action="store_true", help="export tower and neck in half precision; boxes and scores stay fp32")
    add("--check", nargs="+", type=Path, default=[], help="images or folders to compare on; default: toy scenes")
    add("--openvino", action="store_true", help="also check the file in OpenVINO")
    add("--bench", action="store_true", help="time PyTorch and the file on the first image, in turns")
    add("--rounds", type=at_least(1), default=10, help="with --bench: timed runs of each")
    add_cfg_options(parser)
    add_out(parser, "work_dirs/export/model.onnx", "output file; differences and times go to a .json of the same name")


def run(args: argparse.Namespace) -> int:
    """Export, compare and time; exit code 1 if the file differs from PyTorch."""
    from smartclip_det.apis.exporting.exporting import ExportOptions, export_onnx
    from smartclip_det.protocols.stamp import protocol_stamp, write_results
    from smartclip_det.studies.benchmarks.measuring import in_turns, show

    size = args.size and tuple(args.size)
    found = export_onnx(filled(ExportOptions, args, texts=names_of(args), size=size))
    metrics = {f"{c.runtime}_{k}": v for c in found.comparisons for k, v in c.largest.items()}
    metrics |= {f"{c.runtime}_unmatched": c.unmatched for c in found.comparisons}
    times = in_turns(found.runs, args.rounds) if args.bench else {}
    print("\n".join(line for c in found.comparisons for line in c.lines()))
    if times:
        show("latency from image to result", times, "pytorch")
    stamp = protocol_stamp("export", pictures=found.pictures, **found.metadata)
    print(f"written: {found.path}" + (f", {found.bank}" if found.bank else ""))
    print(f"written: {write_results(args.out.with_suffix('.json'), stamp, metrics, seconds=times)}")
    failed = [c.runtime for c in found.comparisons if not c.passed]
    if failed:
        runtimes, limit = ", ".join(failed), found.comparisons[0].tolerance
        print(f"FAILED: {runtimes}: a difference above {limit:g}, or detections without a counterpart.")
    return int(bool(failed))
