"""COCO and LVIS datasets whose labels follow the given vocabulary.

MMDetection's ``CocoDataset`` and LVIS classes assign labels in file order whatever ``classes`` says, and silently drop
misspelled names. Here a label is the index of the name in the vocabulary, and a name that the file does not have is an
error that lists the closest names.
"""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet.datasets.base_det_dataset import BaseDetDataset
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from smartclip_det.core.errors import UserError, unknown_names
from smartclip_det.datasets.training_boxes import boxes_to_learn, refuse_nothing
from smartclip_det.formats.annotations import GroundTruth, annotated_only, id_order, load_ground_truth
from smartclip_det.formats.json_files import read_json
from smartclip_det.formats.lvis import check_lvis
from smartclip_det.formats.pictures import fix_sizes, picture_fault, picture_path
from smartclip_det.formats.segmentations import segmentation_problem
from smartclip_det.models.vocabulary import resolve_names


@DATASETS.register_module()
class OpenVocabCocoDataset(BaseDetDataset):
    """COCO annotations with any vocabulary.

    ``metainfo`` has ``classes`` (the vocabulary), ``seen`` and ``templates``, for :class:`VocabularyHook`.

    Args:
        args: as for MMDetection's datasets.
        vocabulary: class names in label order: a list, a known vocabulary (``ov_coco_65``), a file, or
            ``annotations``: the categories of the annotation file, ordered by id.
        seen: names that training may use, in any of these forms, or ``lvis_base``: the common and frequent
            categories of the annotation file (OV-LVIS); None: all.
        seen_only: drop boxes of other classes (training on the base classes).
        annotated_only: drop images without any box of the vocabulary, also in test mode (OV-COCO validates on
            4,836 images of val2017).
        templates: template set for the prompts of this dataset.
        prompt_names: text used for a class in prompts (``{"creatures": "fish"}``), or a JSON file with such a
            mapping, as for ODinW. Class names do not change elsewhere. Recorded in the protocol stamp.
        kwargs: as for MMDetection's datasets.
    """

    def __init__(
        self,
        *args: Any,
        vocabulary: str | Sequence[str],
        seen: str | Sequence[str] | None = None,
        seen_only: bool = False,
        annotated_only: bool = False,
        templates: str | Sequence[str] | None = None,
        prompt_names: Mapping[str, str] | str | None = None,
        **kwargs: Any,
    ) -> None:
        self.seen_only, self.annotated_only, self._seen = seen_only, annotated_only, seen
        names = None if vocabulary == "annotations" else tuple(resolve_names(vocabulary))
        pipeline = kwargs.get("pipeline", ())
        self.with_masks = any(isinstance(t, Mapping) and t.get("with_mask") for t in pipeline)
        if isinstance(prompt_names, str):
            prompt_names = read_json(prompt_names, "file of prompt names")
        overrides = prompt_names or {}
        if not isinstance(overrides, Mapping):
            raise UserError(f"prompt_names must map class names to texts; given {overrides!r:.80}.")
        metainfo = {"classes": names, "templates": templates, "prompt_names": dict(overrides)}
        super().__init__(*args, metainfo={**(kwargs.pop("metainfo", None) or {}), **metainfo}, **kwargs)

    def _name_classes(self, truth: GroundTruth) -> None:
        """Set the entries of ``metainfo`` that may depend on the annotation file."""
        names = self.metainfo["classes"] or tuple(truth.categories[i] for i in sorted(truth.categories, key=id_order))
        if self._seen == "lvis_base":
            check_lvis(truth)
            kept = {c["name"] for c in truth.data["categories"] if c["frequency"] in "cf"}
            base = tuple(n for n in names if n in kept)
        else:
            base = names if self._seen is None else tuple(resolve_names(self._seen))
        foreign = [n for n in base if n not in set(names)]
        if foreign:
            raise UserError(f"seen contains names that are not in the vocabulary: {', '.join(foreign[:5])}.")
        unknown = [n for n in self.metainfo["prompt_names"] if n not in set(names)]
        if unknown:
            raise unknown_names("classes in prompt_names", unknown, names, "Keys must be names of the vocabulary.")
        self._metainfo.update(classes=names, seen=base)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record per image; boxes are xyxy pixels, labels index the vocabulary."""
        truth = load_ground_truth(self.ann_file, need_annotations=not self.test_mode)
        fix_sizes(truth, self.image_path)
        self._name_classes(truth)
        names = self.metainfo["classes"]
        ids = truth.category_ids(names)
        kept = set(self.metainfo["seen"]) if self.seen_only else set(names)
        self.cat_ids = ids
        self.cat2label = {i: label for label, i in enumerate(ids)}
        wanted = {i for i, n in zip(ids, names, strict=True) if n in kept}
        boxes = boxes_to_learn(truth, wanted)
        if not self.test_mode:
            refuse_nothing(boxes, self.ann_file)
        if self.annotated_only:
            truth = annotated_only(truth, names)
        records = [self._record(i, boxes.kept.get(i["id"], [])) for i in truth.data["images"]]
        print_log(
            f"{osp.basename(self.ann_file)}: {len(records)} images, {len(wanted)} of {len(names)} classes\n"
            f"{boxes.table()}",
            "current",
        )
        return records

    def image_path(self, image: Mapping[str, Any]) -> str:
        """Path of an image of the annotation file."""
        return str(picture_path(self.data_prefix.get("img", ""), image, self.ann_file))

    def prepare_data(self, idx: int) -> Any:
        """As in the base class; an unreadable image is reported by name."""
        try:
            return super().prepare_data(idx)
        except Exception as error:
            fault = picture_fault(self.get_data_info(idx)["img_path"])
            if fault:
                raise UserError(fault) from error
            raise

    def _record(self, image: dict[str, Any], annotations: list[dict[str, Any]]) -> dict[str, Any]:
        if "width" not in image or "height" not in image:
            raise UserError(
                f"{self.ann_file}: image {image['id']!r} has no width and height, and its file was not found."
            )
        instances = []
        for a in annotations:
            x, y, w, h = a["bbox"]
            instance = {
                "bbox": [x, y, x + w, y + h],
                "bbox_label": self.cat2label[a["category_id"]],
                "ignore_flag": int(bool(a.get("iscrowd"))),
            }
            if self.with_masks:
                instance["mask"] = self._mask(a, image["height"], image["width"])
            instances.append(instance)
        return {
            "img_path": self.image_path(image),
            "img_id": image["id"],
            "width": image["width"],
            "height": image["height"],
            "seg_map_path": None,
            "instances": instances,
        }

    def _mask(self, annotation: dict[str, Any], height: Any, width: Any) -> Any:
        """Segmentation of an annotation, unchanged; one that MMDetection cannot rasterise is an error."""
        problem = segmentation_problem(annotation.get("segmentation"), height, width)
        if problem:
            raise UserError(
                f"{self.ann_file}: annotation {annotation.get('id')!r}: {problem} Fix it, or train on "
                "boxes only (no with_mask in the pipeline, no mask head)."
            )
        return annotation["segmentation"]

    def filter_data(self) -> list[dict[str, Any]]:
        """Drop images without boxes or too small ones, as set in ``filter_cfg``; never in test mode."""
        if self.test_mode or not self.filter_cfg:
            return self.data_list
        smallest = self.filter_cfg.get("min_size", 0)
        need_box = self.filter_cfg.get("filter_empty_gt", False)
        kept = [
            r
            for r in self.data_list
            if min(r["width"], r["height"]) >= smallest
            and not (need_box and all(i["ignore_flag"] for i in r["instances"]))
        ]
        if self.data_list and not kept:
            raise UserError(
                f"{self.ann_file}: filter_cfg removes all {len(self.data_list)} images: it requires sides of at least "
                f"{smallest} pixels{' and a box' if need_box else ''}."
            )
        return kept


@DATASETS.register_module()
class OpenVocabLVISDataset(OpenVocabCocoDataset):
    """LVIS annotations, read like COCO's (the reader supports ``coco_url``); a separate name for configs."""
