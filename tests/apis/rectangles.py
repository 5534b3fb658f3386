"""A training-free detector of pure red, green and blue rectangles. Scores depend on their size."""

from __future__ import annotations

from itertools import islice

import numpy as np
from scipy import ndimage

from smartclip_det.apis.detections import Detections
from smartclip_det.apis.inputs import load_image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Rectangles:
    """Has the ``detect_images`` of predictors; ``batches`` records batch sizes."""

    def __init__(self, near=0):
        self.near, self.batches, self.names = near, [], tuple(COLOURS)

    def set_vocabulary(self, names):
        self.names = tuple(names)

    def detect_images(self, images, texts=None, *, batch_size=1, threshold=0.0, max_detections=None):
        names = self.names if texts is None else tuple(texts)
        waiting = iter(images)
        while batch := list(islice(waiting, batch_size)):
            self.batches.append(len(batch))
            for image in batch:
                found = self.detect(image, names).above(threshold)
                yield found if max_detections is None or not len(found) else found.top(max_detections)

    def detect(self, image, names):
        image = load_image(image)
        boxes, scores, labels = [], [], []
        for label, name in enumerate(names):
            mine = (np.abs(image.astype(int) - COLOURS[name]) <= self.near).all(-1)
            for rows, columns in ndimage.find_objects(ndimage.label(mine)[0]):
                box = (columns.start, rows.start, columns.stop, rows.stop)
                area = (box[2] - box[0]) * (box[3] - box[1])
                if area >= 16:
                    boxes.append(box)
                    scores.append(1 - 1 / (1 + area**0.5))
                    labels.append(label)
        found = Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), labels, names)
        return found.top(len(found)) if len(found) else found


def scene(size, count, seed=0, colours=tuple(COLOURS)):
    """An image of rectangles that do not touch each other, and their boxes."""
    g = np.random.default_rng(seed)
    image, boxes = np.zeros((size[1], size[0], 3), np.uint8), []
    for _ in range(100 * count):
        if len(boxes) == count:
            break
        w, h = g.integers(8, 40, 2)
        x, y = g.integers(0, size[0] - w), g.integers(0, size[1] - h)
        if not image[max(0, y - 2) : y + h + 2, max(0, x - 2) : x + w + 2].any():
            name = colours[g.integers(len(colours))]
            image[y : y + h, x : x + w] = COLOURS[name]
            boxes.append(((x, y, x + w, y + h), name))
    return image, boxes
