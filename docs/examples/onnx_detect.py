"""Detect with a file of ``smartclip-det export``: needs numpy and onnxruntime; Pillow only decodes the image.

python onnx_detect.py model.onnx photo.jpg [--bank names.npz] [--threshold 0.3]
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resize_weights(old: int, new: int, kind: str) -> np.ndarray:
    """``[new, old]`` weights of OpenCV's resize along one axis."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        index = np.floor(centre).astype(int) + tap
        x = np.abs(centre - index)
        cubic = np.where(x <= 1, 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3)
        values = np.clip(1 - x, 0, None) if kind == "bilinear" else cubic
        np.add.at(weights, (np.arange(new), index.clip(0, old - 1)), values)
    return weights


def prepare(pixels: np.ndarray, rule: dict) -> tuple[np.ndarray, tuple[int, int]]:
    """RGB ``[h, w, 3]`` to ``images [1, 3, H, W]``, and the height and width of the image inside."""
    (height, width), (old_h, old_w) = rule["size"], pixels.shape[:2]
    factor = min(height / old_h, width / old_w)
    h, w = (max(1, min(most, int(n * factor + 0.5))) for n, most in ((old_h, height), (old_w, width)))
    rows, columns = (resize_weights(a, b, rule["interpolation"]) for a, b in ((old_h, h), (old_w, w)))
    small = np.einsum("yi,ijc,xj->yxc", rows, pixels.astype(np.float32), columns, optimize=True)
    small = ((np.clip(np.round(small), 0, 255) - rule["mean"]) / rule["std"]).transpose(2, 0, 1)
    images = np.pad(small[None], ((0, 0), (0, 0), (0, height - h), (0, width - w)))
    return images.astype(np.float32), (h, w)


def main() -> None:
    """Print a JSON line per detection: name, score and xyxy box in pixels of the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    _ = [parser.add_argument(name) for name in ("model", "picture")]
    parser.add_argument("--bank", help=".npz of names, for a model exported with --bank-input")
    parser.add_argument("--threshold", type=float, default=0.3)
    args = parser.parse_args()
    session = onnxruntime.InferenceSession(args.model)
    facts = session.get_modelmeta().custom_metadata_map
    pixels = np.asarray(ImageOps.exif_transpose(Image.open(args.picture)).convert("RGB"))
    images, size = prepare(pixels, json.loads(facts["preprocessing"]))
    bank = np.load(args.bank) if args.bank else {"names": json.loads(facts["names"])}
    feed = {"images": images, "sizes": np.array([size], np.float32)}
    boxes, scores, labels = session.run(None, feed | {k: bank[k] for k in ("embeds", "masks") if k in bank})
    scale = np.tile([size[1] / pixels.shape[1], size[0] / pixels.shape[0]], 2)
    for box, score, label in zip(boxes[0] / scale, scores[0], labels[0], strict=True):
        if label >= 0 and score >= args.threshold:
            print(json.dumps({"name": str(bank["names"][label]), "score": float(score), "box": box.tolist()}))


if __name__ == "__main__":
    main()
