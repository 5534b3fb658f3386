"""mmcv's operators as plain loops over numbers, written from its source and independent of our implementation."""

from __future__ import annotations

import math

import numpy as np
import torch


def iou(a, b, offset):
    w = max(0, min(a[2], b[2]) - max(a[0], b[0]) + offset)
    h = max(0, min(a[3], b[3]) - max(a[1], b[1]) + offset)
    union = (a[2] - a[0] + offset) * (a[3] - a[1] + offset) + (b[2] - b[0] + offset) * (b[3] - b[1] + offset) - w * h
    return w * h / union if union else math.nan


def nms(boxes, scores, threshold, offset):
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    while left:
        first = left.pop(0)
        kept.append(first)
        left = [i for i in left if not iou(boxes[first], boxes[i], offset) > threshold]
    return kept


def nms_match(boxes, scores, threshold):
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    groups = []
    while left:
        first = left.pop(0)
        near = [i for i in left if iou(boxes[first], boxes[i], 0) >= threshold]
        groups.append([first, *near])
        left = [i for i in left if i not in near]
    return groups


def soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    """The swaps of csrc/pytorch/cpu/nms.cpp, one by one."""
    rows = [[*b, s, i] for i, (b, s) in enumerate(zip(boxes, scores, strict=True))]
    count, i = len(rows), 0
    while i < count:
        best = i
        for j in range(i + 1, count):
            if rows[best][4] < rows[j][4]:
                best = j
        rows[i], rows[best] = rows[best], rows[i]
        j = i + 1
        while j < count:
            overlap = iou(rows[i], rows[j], offset)
            weight = 1.0
            if method == 0 and overlap >= threshold:
                weight = 0.0
            elif method == 1 and overlap >= threshold:
                weight = 1 - overlap
            elif method == 2:
                weight = math.exp(-overlap * overlap / sigma)
            rows[j] = [*rows[j][:4], rows[j][4] * weight, rows[j][5]]
            if rows[j][4] < min_score:
                rows[j] = list(rows[count - 1])
                count -= 1
                j -= 1
            j += 1
        i += 1
    return [r[:5] for r in rows[:count]], [r[5] for r in rows[:count]]


def bilinear(plane, y, x):
    """Sampling rule of RoIAlign: up to one pixel outside the value of the border is used, beyond that 0."""
    height, width = len(plane), len(plane[0])
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    t, left = math.floor(y), math.floor(x)
    b, r = min(t + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - t, x - left
    top = plane[t][left] * (1 - dx) + plane[t][r] * dx
    return top * (1 - dy) + (plane[b][left] * (1 - dx) + plane[b][r] * dx) * dy


def roi_align(image, rois, bins, scale, ratio, aligned, mode="avg", offset=None, gamma=0.0):
    """Average or maximum of samples, and the position of the maximum; ``offset`` makes it deformable RoI pooling."""
    image = image.tolist()
    out = np.zeros((len(rois), len(image[0]), *bins))
    places = np.full((2, *out.shape), -1.0)
    for r, roi in enumerate(rois.tolist()):
        shift = 0.5 if aligned else 0.0
        x1, y1, x2, y2 = (v * scale - shift for v in roi[1:])
        w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1), max(y2 - y1, 1))
        gh, gw = (ratio, ratio) if ratio > 0 else (math.ceil(h / bins[0]), math.ceil(w / bins[1]))
        for c, plane in enumerate(image[int(roi[0])]):
            for i in range(bins[0]):
                for j in range(bins[1]):
                    ox = gamma * w * float(offset[r, 0, i, j]) if offset is not None else 0
                    oy = gamma * h * float(offset[r, 1, i, j]) if offset is not None else 0
                    points = [
                        (y1 + oy + (i + (a + 0.5) / gh) * h / bins[0], x1 + ox + (j + (b + 0.5) / gw) * w / bins[1])
                        for a in range(gh)
                        for b in range(gw)
                    ]
                    values = [bilinear(plane, *p) for p in points]
                    if values and mode == "avg":
                        out[r, c, i, j] = sum(values) / len(values)
                    elif values:
                        out[r, c, i, j] = max(values)
                        places[:, r, c, i, j] = points[values.index(max(values))]
    return out, places


def roi_pool(image, rois, bins, scale):
    image = image.numpy()
    height, width = image.shape[2:]
    out = np.zeros((len(rois), image.shape[1], *bins))
    for r, roi in enumerate(rois.tolist()):
        x1, y1, x2, y2 = roi[1] * scale, roi[2] * scale, (roi[3] + 1) * scale, (roi[4] + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(bins[0]):
            for j in range(bins[1]):
                rows = [math.floor(i * (y2 - y1) / bins[0] + y1), math.ceil((i + 1) * (y2 - y1) / bins[0] + y1)]
                columns = [math.floor(j * (x2 - x1) / bins[1] + x1), math.ceil((j + 1) * (x2 - x1) / bins[1] + x1)]
                rows, columns = np.clip(rows, 0, height), np.clip(columns, 0, width)
                cut = image[int(roi[0]), :, rows[0] : rows[1], columns[0] : columns[1]]
                if cut.size:
                    out[r, :, i, j] = cut.max((1, 2))
    return out


def zero_padded(plane, y, x):
    """Sampling rule of deformable convolution and attention: pixels outside the map are 0."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(plane) and 0 <= column < len(plane[0]):
                total += plane[row][column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


def deform_conv(image, offset, weight, stride, padding, dilation, groups, deform_groups, mask=None, bias=None):
    planes = image.tolist()
    count, channels = image.shape[:2]
    outs, per_group, kh, kw = weight.shape
    size = [
        (image.shape[2 + a] + 2 * padding[a] - dilation[a] * ((kh, kw)[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
    ]
    out = np.zeros((count, outs, *size))
    for n in range(count):
        for o in range(outs):
            group = o // (outs // groups)
            for i in range(size[0]):
                for j in range(size[1]):
                    total = float(bias[o]) if bias is not None else 0.0
                    for p in range(per_group):
                        c = group * per_group + p
                        d = c // (channels // deform_groups)
                        for k in range(kh * kw):
                            at = d * kh * kw + k
                            y = i * stride[0] - padding[0] + k // kw * dilation[0] + float(offset[n, 2 * at, i, j])
                            x = j * stride[1] - padding[1] + k % kw * dilation[1] + float(offset[n, 2 * at + 1, i, j])
                            value = zero_padded(planes[n][c], y, x) * float(weight[o, p, k // kw, k % kw])
                            total += value * (float(mask[n, at, i, j]) if mask is not None else 1.0)
                    out[n, o, i, j] = total
    return out


def attention(value, shapes, locations, weights):
    batch, _, heads, width = value.shape
    _, queries, _, levels, points, _ = locations.shape
    out = np.zeros((batch, queries, heads, width))
    starts = np.cumsum([0, *(h * w for h, w in shapes)])
    for b, q, m, level, p in np.ndindex(batch, queries, heads, levels, points):
        h, w = shapes[level]
        image = value[b, starts[level] : starts[level + 1], m].reshape(h, w, width)
        x, y = locations[b, q, m, level, p].tolist()
        sampled = [zero_padded(image[:, :, d].tolist(), y * h - 0.5, x * w - 0.5) for d in range(width)]
        out[b, q, m] += float(weights[b, q, m, level, p]) * np.array(sampled)
    return out.reshape(batch, queries, heads * width)


def carafe(features, masks, kernel, groups, scale):
    count, channels, h, w = features.shape
    out = torch.zeros(count, channels, h * scale, w * scale, dtype=features.dtype)
    for n, c, y, x in np.ndindex(*out.shape):
        group = c // (channels // groups)
        for k in range(kernel * kernel):
            row, column = y // scale + k // kernel - kernel // 2, x // scale + k % kernel - kernel // 2
            if 0 <= row < h and 0 <= column < w:
                out[n, c, y, x] += features[n, c, row, column] * masks[n, group * kernel * kernel + k, y, x]
    return out
