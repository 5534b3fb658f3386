"""Layers: a lower one never imports a higher one; the modules for GPU-only installations do not need mmdet."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO

PACKAGE = REPO / "smartclip_det"
#: Low to high. A module belongs to the first entry that its dotted path starts with.
LAYERS = [
    ("version",),
    ("core", "operators"),
    ("utils",),
    ("models.towers", "models.zoo", "formats"),
    (
        "models.template_sets",
        "models.vocabulary",
        "models.regions",
        "models.boxes",
        "models.region_cache",
        "models.selection",
        "models.losses",
        "metrics",
    ),
    (
        "datasets",
        "protocols",
        "visualization",
        "models.backbones",
        "models.dense_heads",
        "models.necks",
        "models.roi_heads",
    ),
    ("models.rescoring",),
    ("models.detectors", "models.alignment", "models.grounding", "probing"),
    ("engine",),
    ("register_detection", "register_alignment", "parts", "alignment_parts", "evaluation"),
    ("apis",),
    ("studies",),
    ("cli", "__main__"),
]
#: Packages of one layer that do not import each other; shared code belongs in a lower layer.
SISTERS = [
    ("datasets",),
    ("protocols",),
    ("visualization",),
    ("models.backbones", "models.dense_heads", "models.necks", "models.roi_heads"),
]


def modules():
    return [p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE]


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(name: str) -> int | None:
    best = None
    for rank, entries in enumerate(LAYERS):
        for entry in entries:
            if (name == entry or name.startswith(entry + ".")) and (best is None or len(entry) > best[1]):
                best = (rank, len(entry))
    return None if best is None else best[0]


def sister_of(name: str) -> int | None:
    return next((n for n, s in enumerate(SISTERS) if any(name == e or name.startswith(e + ".") for e in s)), None)


def are_strange_sisters(importer: str, imported: str) -> bool:
    mine, other = sister_of(importer), sister_of(imported)
    return mine is not None and other is not None and mine != other


def imports_of(path: Path, top_level_only: bool = False):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names)


def test_scoring_saved_predictions_needs_no_torch():
    """Its import takes seconds, and most files are scored within one."""
    found = subprocess.run(
        [sys.executable, "-c", "import sys; import smartclip_det.protocols.detection; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        check=True,
    )
    assert found.stdout == "False\n"


def test_every_module_has_a_layer():
    homeless = [dotted(p) for p in modules() if dotted(p) not in ("", "models") and layer_of(dotted(p)) is None]
    assert homeless == []


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_lower_layers_never_import_higher_ones(path):
    mine = layer_of(dotted(path))
    if mine is None:
        return
    for name in imports_of(path):
        if name.startswith("smartclip_det."):
            other = layer_of(name.removeprefix("smartclip_det."))
            # Building the towers of a config is next to them, and imported lazily only by the predictor's layer.
            assert other is None or other <= mine, f"{dotted(path)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_sisters_do_not_import_each_other_s_insides(path):
    for name in imports_of(path):
        inside = name.removeprefix("smartclip_det.")
        assert inside == name or not are_strange_sisters(dotted(path), inside), f"{dotted(path)} imports {name}"


def test_the_rules_bite():
    assert are_strange_sisters("datasets.captions", "protocols.stamp")
    assert are_strange_sisters("models.roi_heads.x", "visualization.draw")
    assert not are_strange_sisters("models.dense_heads.x", "models.roi_heads.y")
    assert not are_strange_sisters("protocols.base", "metrics.coco")
    for lower, higher in (
        ("formats.voc", "metrics.voc"),
        ("metrics.coco", "protocols.base"),
        ("protocols.base", "probing.region_probe"),
        ("models.regions", "models.detectors"),
        ("probing.region_probe", "apis.predictor"),
    ):
        assert layer_of(lower) < layer_of(higher), (lower, higher)


def test_models_know_nothing_of_files_and_scores():
    """Metrics are computed next to the models, never inside them."""
    for path in (PACKAGE / "models").rglob("*.py"):
        for name in imports_of(path):
            room = name.removeprefix("smartclip_det.").split(".")[0]
            assert room not in ("metrics", "protocols", "probing") or room == name.split(".")[0], (
                f"{path} imports {name}"
            )


def test_core_is_torch_only():
    allowed = {"torch", "safetensors", "smartclip_det", *sys.stdlib_module_names}
    for path in (PACKAGE / "core").glob("*.py"):
        for name in imports_of(path):
            assert name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_one_file_imports_open_clip():
    users = [dotted(p) for p in modules() if any(n.split(".")[0] == "open_clip" for n in imports_of(p))]
    # Benchmarks compare with it.
    assert [u for u in users if not u.startswith("studies.benchmarks.")] == ["models.towers.tokenizer"]


def binarisations(source: str) -> list[str]:
    """Comparisons of masks, probabilities or logits with a threshold of 0.5, or of 0 on logits."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.GtE | ast.Gt)
        and isinstance(node.comparators[0], ast.Constant)
        and re.search(
            {0.5: "mask|prob|logit|gate", 0: "logit"}.get(node.comparators[0].value, "$^"), ast.unparse(node.left)
        )
    ]


def test_masks_become_binary_in_one_place():
    assert binarisations("m = (found.mask_probs >= 0.5).float()") == ["found.mask_probs >= 0.5"]
    assert binarisations("m = torch.cat(logits) > 0") == ["torch.cat(logits) > 0"]
    found = {dotted(p): binarisations(p.read_text(encoding="utf-8")) for p in modules()}
    assert {n: f for n, f in found.items() if f} == {"core.similarity": ["probs >= 0.5"]}


def test_texts_are_encoded_in_one_place():
    """Training encodes texts with gradients; everything else calls ``towers.text_encoding``."""
    callers = {
        dotted(p)
        for p in modules()
        for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("forward_text", "forward_text_by_length")
    }
    assert callers == {
        "models.alignment.smartclip_alignment",
        # Checks encoders of other libraries, this method included.
        "models.towers.encoder",
        "models.towers.smartclip",
        "models.towers.text_encoding",
        "models.towers.text_side",
    }


def test_only_the_safe_loader_calls_torch_load():
    for path in [*modules(), *(REPO / "tools").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "load" and isinstance(node.value, ast.Name):
                assert not (node.value.id in ("torch", "pickle") and dotted(path) != "utils.safe_load"), path
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert isinstance(node.value, ast.Constant)
                assert node.value.value is True


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmdet', 'mmcv'):
            raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
import torch
from smartclip_det.core.similarity import masked_cosine
from smartclip_det.models.towers import SmartCLIP
from smartclip_det.models.vocabulary import build_bank
from smartclip_det.core.contrastive import softmax_strip
model = SmartCLIP.from_arch('SmartCLIP-tiny')
bank = build_bank(model, ['cat', 'dog'], progress=False)
images = model.encode_image(torch.randn(2, 3, 64, 64))
print(masked_cosine(images, bank.embeds, bank.masks).shape)
softmax_strip(images, bank.embeds, bank.masks).rows.sum().backward()
from PIL import Image
from smartclip_det import Predictor
from smartclip_det.models.boxes import TorchvisionBoxes
source = TorchvisionBoxes('fasterrcnn_mobilenet_v3_large_320_fpn', weights=None, size=64, max_boxes=9)
predictor = Predictor.from_pretrained(model, boxes=source, use_cache=False, parser='rules', device='cpu')
predictor.set_image(Image.new('RGB', (96, 64)))
assert len(predictor.detect(['a cat', 'a dog'])) and len(predictor.ground('the left cat')) == 1
assert predictor.explain('a cat').similarity.ndim == 2 and predictor.embed().shape[1] == 64
import smartclip_det.register_alignment
from mmengine.registry import MODELS
aligner = MODELS.build(dict(type='SmartCLIPAlignment', towers=dict(arch='SmartCLIP-tiny'), distillation=dict()))
from mmengine.structures import BaseDataElement
samples = [BaseDataElement(metainfo=dict(drawn_captions=[t])) for t in ('a cat', 'a dog')]
losses = aligner(torch.randn(2, 3, 64, 64), samples, mode='loss')
sum(v for k, v in losses.items() if 'loss' in k).backward()
import importlib
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        assert 'is blocked' in str(error), (name, error)
        print('needs det:', name.removeprefix('smartclip_det.'))
    except ValueError as error:
        assert 'pip install "smartclip_det[det]"' in str(error), (name, error)
        print('needs det:', name.removeprefix('smartclip_det.'))
assert not any(m.split('.')[0] in ('mmdet', 'mmcv') for m in sys.modules)
"""
#: Modules that need the extra ``det``; a package includes its modules.
NEEDS_DET = {
    "parts",
    "register_detection",
    "datasets.open_vocab_coco",
    "models.backbones",
    "models.dense_heads",
    "models.detectors",
    "models.necks",
    "models.roi_heads",
    "studies.benchmarks.detect",
}


def test_the_base_runs_with_mmdet_and_mmcv_blocked_and_only_parts_of_detectors_need_them():
    names = [f"smartclip_det.{dotted(p)}" for p in modules() if dotted(p)]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], capture_output=True, text=True, cwd=REPO, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([2, 2])" in done.stdout
    failed = {line.removeprefix("needs det: ") for line in done.stdout.splitlines() if line.startswith("needs det: ")}
    assert failed >= NEEDS_DET
    assert [n for n in failed if not any(n == d or n.startswith(f"{d}.") for d in NEEDS_DET)] == []


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, smartclip_det; assert 'torch' not in sys.modules; print(smartclip_det.__version__)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0


def test_files_and_functions_stay_short():
    for path in [*modules(), *(REPO / "tools").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, f"{path} has {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                # Signatures and docstrings may have any number of lines.
                described = ast.get_docstring(node, clean=False) is not None and len(node.body) > 1
                start = node.body[int(described)].lineno
                length = (node.end_lineno or 0) - start + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"


def test_no_stray_notes():
    for path in [*modules(), *(REPO / "tools").rglob("*.py")]:
        for word in ("TODO", "FIXME", "XXX", "NotImplementedError", "fmt: skip", "fmt: off"):
            assert word not in path.read_text(encoding="utf-8"), f"{path}: {word}"


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked}:
            raise ImportError(f'{{name}} is blocked')
sys.meta_path.insert(0, Block())
import torch
import smartclip_det.register_alignment
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
model = MODELS.build(dict(type='SmartCLIPAlignment', towers=dict(arch='SmartCLIP-tiny')))
samples = [BaseDataElement(metainfo=dict(drawn_tokens=[[49406, n, 49407]])) for n in (5, 6)]
losses = model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), samples, mode='loss')
sum(v for k, v in losses.items() if 'loss' in k).backward()
"""


def test_alignment_trains_on_cached_tokens_with_torch_and_mmengine_alone():
    blocked = {
        "mmdet",
        "mmcv",
        "open_clip",
        "regex",
        "ftfy",
        "pycocotools",
        "lvis",
        "faster_coco_eval",
        "ijson",
        "safetensors",
        "scipy",
        "timm",
        "transformers",
    }
    code = BARE.format(blocked=sorted(blocked))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stderr
