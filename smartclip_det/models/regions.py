"""Region vectors: from an image and boxes to ``[R, D]`` vectors of the image tower.

Views:

* ``crop``: pooled vector of a square window around the box.
* ``blur``: pooled vector of the full image, blurred outside the box (ReCLIP, arXiv 2204.05991).
* ``circle``: pooled vector of the full image with a red ellipse in the box (arXiv 2304.06712).
* ``dense``: RoIAlign on the dense map, one forward pass per image for any number of boxes.
* ``mask``: mean of the dense map under an instance mask.

In ``dense`` and ``mask``, cells are weighted by their own norms (a tower with weighted pooling stores the weight of a
cell there), or equally (``pooling="unit"``: each cell is normalised).

Shape letters: R regions, D joint embedding, H W pixels of the original image, S side of the square input, h w cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.words import POOLINGS, PRESENCE_SOURCES, VIEWS
from smartclip_det.models.towers.encoder import Encoder
from smartclip_det.utils.images import MEAN_COLOUR, fit_square, pixels

#: Blur radius as a fraction of the longer side.
BLUR = 0.1


def pool_regions(dense: Tensor, rois: Tensor, cell: float) -> Tensor:
    """``[R, D]`` means of the dense map ``[B, D, h, w]`` over ``[R, 5]`` rois (image index, xyxy input pixels).

    Args:
        dense: dense map.
        rois: regions.
        cell: input pixels per cell.
    """
    return roi_align(dense.float(), rois.float(), 1, spatial_scale=1 / cell, sampling_ratio=2, aligned=True).flatten(1)


def pool_masks(dense: Tensor, masks: Tensor) -> Tensor:
    """``[R, D]`` means of one dense map ``[D, h, w]`` under ``[R, S, S]`` masks, weighted by cell coverage."""
    weights = functional.adaptive_avg_pool2d(masks.float().unsqueeze(1), dense.shape[-2:]).flatten(1)
    total = weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return (weights / total) @ dense.float().flatten(1).t()


def crop_window(image: Image.Image, box: Sequence[float], context: float, side: int) -> Image.Image:
    """Square window around a box, resized to ``side`` x ``side``; padded with the mean colour outside the image.

    Args:
        image: RGB image.
        box: xyxy pixels.
        context: side of the window relative to the longer side of the box.
        side: S.
    """
    x1, y1, x2, y2 = box
    half = max(x2 - x1, y2 - y1, 1.0) * context / 2
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    left, top, size = round(cx - half), round(cy - half), max(1, round(2 * half))
    window = Image.new("RGB", (size, size), MEAN_COLOUR)
    inside = (max(0, left), max(0, top), min(image.width, left + size), min(image.height, top + size))
    if inside[2] > inside[0] and inside[3] > inside[1]:
        window.paste(image.crop(inside), (inside[0] - left, inside[1] - top))
    return window.resize((side, side), Image.Resampling.BICUBIC)


def blur_outside(image: Image.Image, box: Sequence[float], blurred: Image.Image) -> Image.Image:
    """The image inside an xyxy box, and ``blurred`` elsewhere."""
    corners = (
        max(0, int(box[0])),
        max(0, int(box[1])),
        min(image.width, int(np.ceil(box[2]))),
        min(image.height, int(np.ceil(box[3]))),
    )
    out = blurred.copy()
    if corners[2] > corners[0] and corners[3] > corners[1]:
        out.paste(image.crop(corners), corners[:2])
    return out


def circle_inside(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The image with a red ellipse inscribed in an xyxy box; the line is 2 pixels wide at size 384, at least 1."""
    out = image.copy()
    x1, y1, x2, y2 = box
    width = max(1, round(2 * max(image.size) / 384))
    ImageDraw.Draw(out).ellipse((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=(255, 0, 0), width=width)
    return out


class RegionEncoder:
    """Region vectors of images; the dense map of the current image is computed once.

    Args:
        towers: the encoder, on any device.
        dense_size: input size of dense maps in pixels; 0: the tower's own.
        dense_mode: one of the encoder's ``dense_modes``.
        fit: how an image is made square, ``pad`` or ``squash`` (a crop would lose boxes).
        crop_context: see :func:`crop_window`.
        batch_size: images per forward pass for the crop, blur and circle views.
    """

    def __init__(
        self,
        towers: Encoder,
        *,
        dense_size: int = 0,
        dense_mode: str = "value",
        fit: str = "pad",
        crop_context: float = 1.2,
        batch_size: int = 64,
    ) -> None:
        self.towers = towers
        self.side = towers.config.image_size
        self.dense_size = dense_size or self.side
        self.dense_mode = check_choice("dense_mode", dense_mode, towers.dense_modes)
        self.fit = check_choice("fit", fit, ("pad", "squash"))
        if crop_context < 1:
            raise UserError(f"crop_context must be at least 1; given {crop_context}.")
        self.crop_context, self.batch_size = crop_context, batch_size
        mean, std = towers.image_statistics()
        device = towers.logit_scale.device
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        self._current: tuple[Image.Image, dict[str, Tensor]] | None = None

    def normalise(self, images: Sequence[Image.Image]) -> Tensor:
        """Square RGB images to ``[B, 3, S, S]``, normalised with the tower's statistics."""
        batch = torch.stack([pixels(i) for i in images]).to(self._mean.device).float()
        return (batch - self._mean) / self._std

    @torch.no_grad()
    def vectors(
        self,
        image: Image.Image,
        boxes: Sequence[Sequence[float]],
        view: str,
        masks: np.ndarray | None = None,
        dense_mode: str | None = None,
        pooling: str = "own",
    ) -> Tensor:
        """``[R, D]`` vectors of xyxy boxes (pixels of the image), on the CPU.

        Args:
            image: RGB image.
            boxes: R boxes.
            view: one of :data:`VIEWS`.
            masks: ``[R, H, W]`` bool, for the ``mask`` view.
            dense_mode: overrides the constructor's mode.
            pooling: for ``dense`` and ``mask``, one of :data:`POOLINGS`.
        """
        check_choice("view", view, VIEWS)
        check_choice("pooling", pooling, POOLINGS)
        if not len(boxes):
            return torch.zeros(0, self.towers.config.embed_dim)
        if view == "dense":
            corners = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
            return self.pool(self._weighted(image, dense_mode, pooling), [image.size], [corners]).cpu()
        if view == "mask":
            if masks is None or len(masks) != len(boxes):
                raise UserError("The mask view needs one mask per box.")
            return pool_masks(self._weighted(image, dense_mode, pooling)[0], self._fit_masks(masks)).cpu()
        return self._encode(self._views(image, boxes, view))

    def _views(self, image: Image.Image, boxes: Sequence[Sequence[float]], view: str) -> list[Image.Image]:
        if view == "crop":
            return [crop_window(image, b, self.crop_context, self.side) for b in boxes]
        if view == "circle":
            return [fit_square(circle_inside(image, b), self.side, self.fit) for b in boxes]
        blurred = image.filter(ImageFilter.GaussianBlur(BLUR * max(image.size)))
        return [fit_square(blur_outside(image, b, blurred), self.side, self.fit) for b in boxes]

    def _encode(self, squares: Sequence[Image.Image]) -> Tensor:
        parts = [
            self.towers.encode_image(self.normalise(squares[i : i + self.batch_size]))
            for i in range(0, len(squares), self.batch_size)
        ]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def dense_maps(self, images: Sequence[Image.Image], dense_mode: str | None = None) -> Tensor:
        """``[B, D, h, w]`` dense maps of B images in one pass; not cached."""
        squares = [fit_square(i, self.dense_size, self.fit) for i in images]
        return self.towers.encode_dense(self.normalise(squares), dense_mode or self.dense_mode)

    def pool(self, dense: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor]) -> Tensor:
        """``[R, D]`` vectors of the boxes of B images, concatenated.

        Args:
            dense: ``[B, D, h, w]`` from :meth:`dense_maps`.
            sizes: width and height of each image.
            boxes: ``[R_b, 4]`` xyxy pixels of each image.
        """
        rois = [
            # In floats: a factor below 1 would become 0 in an integer tensor.
            torch.cat([b.new_full((len(b), 1), n), b * b.new_tensor(self._factors(size))], dim=1)
            for n, (size, b) in enumerate(zip(sizes, (b.float() for b in boxes), strict=True))
        ]
        return pool_regions(dense, torch.cat(rois).to(dense.device), self.towers.config.patch_size)

    @torch.no_grad()
    def dense_map(self, image: Image.Image, dense_mode: str | None = None) -> Tensor:
        """``[1, D, h, w]`` dense map; cached until another image is passed."""
        mode = dense_mode or self.dense_mode
        if self._current is None or self._current[0] is not image:
            self._current = (image, {})
        maps = self._current[1]
        if mode not in maps:
            maps[mode] = self.dense_maps([image], mode).float()
        return maps[mode]

    def _weighted(self, image: Image.Image, dense_mode: str | None, pooling: str) -> Tensor:
        """``[1, D, h, w]`` dense map, with normalised cells for ``unit``."""
        dense = self.dense_map(image, dense_mode)
        return functional.normalize(dense, dim=1) if pooling == "unit" else dense

    @torch.no_grad()
    def picture(self, image: Image.Image, source: str) -> Tensor:
        """``[P, D]`` vectors of the full image, on the CPU, see :func:`core.presence.presence_cosine`.

        Args:
            image: RGB image.
            source: ``pooled``: P = 1, the pooled vector; ``cells``: cells of the dense map, without padding.
        """
        if check_choice("presence_source", source, PRESENCE_SOURCES) == "pooled":
            return self._encode([fit_square(image, self.side, self.fit)])
        return self.shown_cells(self.dense_map(image)[0], image.size).cpu()

    def shown_cells(self, dense: Tensor, size: tuple[int, int]) -> Tensor:
        """``[P, D]`` cells of a dense map ``[D, h, w]`` that cover an image of this width and height."""
        across, down = (
            math.ceil(n * f / self.towers.config.patch_size) for n, f in zip(size, self._factors(size)[:2], strict=True)
        )
        return dense[:, :down, :across].flatten(1).t()

    def _factors(self, size: tuple[int, int]) -> list[float]:
        """Pixels of the square dense input per image pixel, for both corners."""
        across, down = (self.dense_size / (max(size) if self.fit == "pad" else n) for n in size)
        return [across, down, across, down]

    def _fit_masks(self, masks: np.ndarray) -> Tensor:
        """``[R, S, S]`` masks on the square dense input."""
        height, width = masks.shape[1:]
        canvas = np.zeros((len(masks), max(height, width), max(height, width)), dtype=np.float32)
        if self.fit == "pad":
            canvas[:, :height, :width] = masks
        else:
            canvas = masks.astype(np.float32)
        resized = functional.interpolate(
            torch.from_numpy(canvas)[:, None], (self.dense_size, self.dense_size), mode="area"
        )
        return resized[:, 0].to(self._mean.device)
