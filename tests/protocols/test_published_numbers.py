"""Every expected value of the real test data, with both backends, through the command line."""

from __future__ import annotations

import json

import pytest

from smartclip_det.formats.annotations import GroundTruth, load_ground_truth
from smartclip_det.formats.predictions import check_predictions
from smartclip_det.metrics.coco import coco_metrics, evaluate_tables
from smartclip_det.protocols.registry import evaluate

BACKENDS = ["fast", "reference"]
ORDER = [
    "mAP",
    "mAP_50",
    "mAP_75",
    "mAP_s",
    "mAP_m",
    "mAP_l",
    "AR@1",
    "AR@10",
    "AR@100",
    "AR_s@100",
    "AR_m@100",
    "AR_l@100",
]
PEER = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def request(protocol, ann, pred, **options):
    return evaluate(protocol, ann, pred, **options)


def assert_twelve(metrics, expected, iou_type="bbox"):
    for ours, peer in zip(ORDER, PEER, strict=True):
        assert metrics[f"{iou_type}_{ours}"] == pytest.approx(expected[peer], abs=1e-9), ours


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_coco_fake100(shared, backend, iou_type):
    folder = shared / "coco_eval_fake100"
    expected = json.loads((folder / "expected.json").read_text())
    result = request(
        "coco",
        folder / "instances_val2014_100.json",
        folder / f"instances_val2014_fake{iou_type}100_results.json",
        backend=backend,
        iou_type=iou_type,
    )
    assert_twelve(result.metrics, expected[iou_type], iou_type)
    if iou_type == "bbox":
        for name, value in expected["bbox_per_category_AP"].items():
            assert result.per_class[name] == pytest.approx(value, abs=1e-9) or value in (None, -1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coco_fake100_class_agnostic_and_open_vocabulary(shared, backend):
    folder = shared / "coco_eval_fake100"
    expected = json.loads((folder / "expected.json").read_text())
    truth = load_ground_truth(folder / "instances_val2014_100.json")
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    results, _ = check_predictions(results, truth)
    tables = evaluate_tables(truth, results, backend=backend, use_categories=False)
    assert_twelve(coco_metrics(tables), expected["bbox_useCats0"])
    split = expected["ov_coco_protocol_65_classes"]
    result = request(
        "ov-coco",
        folder / "instances_val2014_100.json",
        folder / "instances_val2014_fakebbox100_results.json",
        backend=backend,
    )
    assert result.metrics["base_ap50"] == pytest.approx(split["AP50_base48"], abs=1e-9)
    assert result.metrics["novel_ap50"] == pytest.approx(split["AP50_novel17"], abs=1e-9)
    assert result.metrics["all_ap50"] == pytest.approx(split["AP50_all65"], abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_adversarial_cases(shared, backend, tmp_path):
    folder = shared / "coco_eval_adversarial"
    cases = json.loads((folder / "expected_pycocotools.json").read_text())["cases"]
    assert len(cases) == 49
    for name, case in cases.items():
        content = json.loads((folder / name).read_text())
        truth = load_ground_truth(content)
        assert truth.report.counts["renumbered_annotation_ids"] == (name == "duplicate_ann_ids.json")
        if truth.report.counts["renumbered_annotation_ids"]:
            # The reference keeps repeated ids; our reader renumbers them.
            truth = GroundTruth(content, name)
        results, counts = check_predictions(content["detections"], truth, case["iouType"])
        metrics = coco_metrics(
            evaluate_tables(truth, results, backend=backend, iou_type=case["iouType"]), case["iouType"]
        )
        for ours, value in zip(ORDER, case["stats"], strict=True):
            assert metrics[f"{case['iouType']}_{ours}"] == pytest.approx(value, abs=1e-9), (name, ours)
        if name == "unknown_dt_category.json":
            assert counts["unknown_category"] == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_coco_mini_train(shared, backend):
    folder = shared / "coco_mini_train"
    expected = json.loads((folder / "expected.json").read_text())
    files = (folder / "instances_train2017.json", folder / "peer_results.json")
    assert_twelve(request("coco", *files, backend=backend).metrics, expected["bbox"])
    metrics = request("ov-coco", *files, backend=backend).metrics
    split = expected["ov_coco_protocol_65_classes"]
    assert metrics["base_ap50"] == pytest.approx(split["AP50_base48"], abs=1e-9)
    assert metrics["novel_ap50"] == pytest.approx(split["AP50_novel17"], abs=1e-9)
    assert metrics["all_ap50"] == pytest.approx(split["AP50_all65"], abs=1e-9)
    assert metrics["bbox_mAP"] == pytest.approx(split["AP_all65"], abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("limit", "key", "recall"), [(300, "max_dets_300", "AR@300"), (-1, "no_per_image_limit", "AR@-1")]
)
def test_lvis(shared, backend, limit, key, recall):
    folder = shared / "lvis_val100"
    expected = json.loads((folder / "expected_A.json").read_text())
    result = request(
        "ov-lvis", folder / "lvis_val_100.json", folder / "peer_results_A.json", backend=backend, max_dets=limit
    )
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf", recall):
        assert result.metrics[f"bbox_{name}"] == pytest.approx(expected[key][name], abs=1e-9), name
    assert result.metrics["bbox_AP_novel"] == result.metrics["bbox_APr"]
    if limit == 300:
        truth = load_ground_truth(folder / "lvis_val_100.json")
        scored = {k: v for k, v in result.per_class.items() if v is not None}
        assert len(scored) == expected["n_categories_scored"]
        for category, value in expected["per_category_AP_max_dets_300"].items():
            assert scored[truth.categories[int(category)]] == pytest.approx(value, abs=1e-9)


def test_lvis_groups_of_classes_change_nothing(shared, monkeypatch):
    from smartclip_det.metrics import lvis

    folder = shared / "lvis_val100"
    whole = request("lvis", folder / "lvis_val_100.json", folder / "peer_results_A.json")
    monkeypatch.setattr(lvis, "GROUP_DETECTIONS", 100)
    grouped = request("lvis", folder / "lvis_val_100.json", folder / "peer_results_A.json")
    assert grouped.metrics == whole.metrics
    assert grouped.per_class == whole.per_class


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ann", ["Annotations", "gt_coco.json"])
def test_voc_real_detections(shared, backend, ann):
    folder = shared / "voc_real_detections"
    expected = json.loads((folder / "expected.json").read_text())
    result = request("voc", folder / ann, folder / "detections_coco.json", backend=backend)
    assert result.metrics["mAP"] == pytest.approx(expected["voc_all_point"]["mAP"], abs=1e-6)
    assert result.metrics["mAP_11"] == pytest.approx(expected["voc_eleven_point"]["mAP"], abs=1e-6)
    for name, value in expected["voc_all_point"]["AP"].items():
        assert result.per_class[name] == pytest.approx(value, abs=1e-6), name
    coco = request("coco", folder / "gt_coco.json", folder / "detections_coco.json", backend=backend)
    assert_twelve(coco.metrics, expected["coco"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_voc_published_case(shared, backend):
    from smartclip_det.metrics.voc import evaluate_voc

    folder = shared / "voc_ap_published_case"
    expected = json.loads((folder / "expected.json").read_text())
    data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    results = []
    for number, path in enumerate(sorted((folder / "gts").glob("*.txt")), 1):
        data["images"].append({"id": number})
        for line in path.read_text().splitlines():
            box = [float(v) for v in line.split()[1:]]
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": 1, "bbox": box}
            )
        for line in (folder / "dets" / path.name).read_text().splitlines():
            _, score, *box = line.split()
            results.append(
                {"image_id": number, "category_id": 1, "score": float(score), "bbox": [float(v) for v in box]}
            )
    truth = load_ground_truth(data)
    assert len(data["images"]) == 7
    for threshold, value in expected["all_point"].items():
        metrics, _ = evaluate_voc(truth, results, backend=backend, threshold=float(threshold))
        assert metrics["mAP"] == pytest.approx(value, abs=1e-6)
        assert metrics["mAP_11"] == pytest.approx(expected["eleven_point"][threshold], abs=1e-6)


def referring_rule(rows, rule, tmp_path):
    """Prediction lines of a selection rule over the candidate boxes of each sentence."""
    from smartclip_det.metrics.referring import box_overlap

    lines = []
    for key, candidates, target in rows:
        boxes = [[x, y, x + w, y + h] for x, y, w, h in candidates]
        if rule == "oracle":
            score = [box_overlap(b, target) for b in boxes]
        elif rule == "largest":
            score = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
        else:
            score = [-float(i) for i in range(len(boxes))]
        lines.append(json.dumps({"id": key, "boxes": boxes, "scores": score}))
    path = tmp_path / f"{rule}.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("layout", ["refs(unc).p", "refs_unc.json", "mdetr_style_testA.json", "jsonl"])
@pytest.mark.parametrize(
    ("rule", "key"),
    [("oracle", "oracle_best_candidate"), ("largest", "largest_candidate"), ("first", "first_candidate")],
)
def test_refcoco_picking_rules_in_every_layout(shared, tmp_path, layout, rule, key):
    from smartclip_det.formats.expressions.jsonl import write_expressions
    from smartclip_det.formats.expressions.loading import load_expressions

    folder = shared / "refcoco_testA_slice"
    expected = json.loads((folder / "expected.json").read_text())[key]["continuous_iou"]
    slice_rows = json.loads((folder / "testA_refcoco_unc_dets_slice.json").read_text())
    split = "testA"
    if layout == "jsonl":
        write_expressions(tmp_path / "own.jsonl", load_expressions(folder / "refs(unc).p"))
        path = tmp_path / "own.jsonl"
    else:
        path = folder / layout
        split = "" if layout.startswith("mdetr") else "testA"
    truth = load_expressions(path, split=split or None)
    assert len(truth) == 29
    by_sentence = {(r["sent"], tuple(round(v, 2) for v in r["gt_box"])): r for r in slice_rows}
    rows = []
    for e in truth:
        x1, y1, x2, y2 = e.boxes[0]
        row = by_sentence[e.sentence, tuple(round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1))]
        rows.append((e.id, row["pred_boxes"], e.boxes[0]))
    result = request("refcoco", path, referring_rule(rows, rule, tmp_path), split=split)
    assert result.metrics["acc50"] == pytest.approx(expected["P@0.5"], abs=1e-9)
    assert result.metrics["acc75"] == pytest.approx(expected["P@0.75"], abs=1e-9)
    assert result.metrics["miou"] == pytest.approx(expected["mean_IoU"], abs=1e-6)


def test_refcocog_google_sample_predictions(shared, tmp_path):
    folder = shared / "refcocog_google_val"
    expected = json.loads((folder / "expected.json").read_text())
    boxes = {t["annotation_id"]: t for t in json.loads((folder / "triples_with_box.json").read_text())}
    sample = json.loads((folder / "sample_results_comprehension_slice.json").read_text())
    truth, pred = [], []
    for row in sample:
        x, y, w, h = boxes[row["annotation_id"]]["bbox"]
        truth.append(
            json.dumps(
                {
                    "id": row["refexp_id"],
                    "boxes": [[x, y, x + w, y + h]],
                    "sentence": "the object",
                    "image_id": boxes[row["annotation_id"]]["image_id"],
                    "file_name": "",
                }
            )
        )
        ranked = row["predicted_bounding_boxes"]
        pred.append(json.dumps({"id": row["refexp_id"], "boxes": ranked, "scores": [-i for i in range(len(ranked))]}))
    (tmp_path / "truth.jsonl").write_text("\n".join(truth))
    (tmp_path / "pred.jsonl").write_text("\n".join(pred))
    result = request("refcoco", tmp_path / "truth.jsonl", tmp_path / "pred.jsonl", box_format="xywh")
    assert result.counts["sentences"] == expected["predictions"]
    assert result.metrics["acc50"] == pytest.approx(expected["precision@1_IoU0.5"], abs=1e-9)
    assert result.metrics["miou"] == pytest.approx(sum(expected["IoU_of_top_box"]) / 12, abs=1e-6)


def test_category_lists_equal_the_published_ones(shared):
    from smartclip_det.core.vocabularies import COCO_80, OV_COCO_65, OV_COCO_BASE, OV_COCO_NOVEL

    folder = shared / "category_metadata"
    for names, file in (
        (COCO_80, "mscoco_all_classes"),
        (OV_COCO_65, "mscoco_65_classes"),
        (OV_COCO_BASE, "mscoco_seen_classes"),
        (OV_COCO_NOVEL, "mscoco_unseen_classes"),
    ):
        assert sorted(names) == sorted(json.loads((folder / f"{file}.json").read_text()))
    assert [i for i, n in enumerate(OV_COCO_65) if n in OV_COCO_NOVEL] == [
        4,
        5,
        11,
        12,
        15,
        16,
        21,
        23,
        27,
        29,
        32,
        34,
        45,
        47,
        54,
        58,
        63,
    ]
