"""A training step with one detector of every config folder in MMDetection's wheel, on our operators.

``docs/operators.md`` lists the folders that cannot train, each with its reason, and the missing operators.
"""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import mmcv
import pytest
import torch
import torch.distributed as dist
from mmengine.registry import init_default_scope

from smartclip_det.core.errors import UserError
from smartclip_det.operators import finder
from smartclip_det.utils import compat
from tests.conftest import REPO
from tests.operators import families

transformers = pytest.importorskip("transformers", reason="detectors that read texts need transformers")
PAGE = (REPO / "docs/operators.md").read_text(encoding="utf-8")


def table(title):
    """First and second column of the table below a heading of the page."""
    part = PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", part, flags=re.MULTILINE)
    return dict(rows[1:])


WITHOUT_STEP = {name.strip("`"): reason for name, reason in table("Config folders that are not tested").items()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A random one-layer BERT; GLIP's head accepts vectors of any width."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *families.WORDS]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=len(words), **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def short_networks():
    """Backbones with one block per stage, and a single-process group, which MMSyncBN needs."""
    compat.install_language_routes()
    init_default_scope("mmdet")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        families.shorten_backbones(patch)
        yield
    dist.destroy_process_group()


@pytest.mark.parametrize("family", [f for f in families.family_names() if f not in WITHOUT_STEP])
def test_training_step(family, bert):
    loss, gradients = families.train_step(family, bert)
    assert math.isfinite(loss)
    assert math.isfinite(gradients)
    assert gradients > 0


@pytest.mark.parametrize("family", [f for f, reason in WITHOUT_STEP.items() if "no model" not in reason])
def test_folders_without_a_step_lack_what_the_page_says(family, bert):
    package = re.search(r"`(.+?)`", WITHOUT_STEP[family]).group(1)
    try:
        families.train_step(family, bert)
    except (ImportError, RuntimeError) as error:
        assert package.lower() in str(error).lower()  # noqa: PT017
    else:
        pytest.skip(f"{package} is installed here: {family} takes its step")


def test_the_page_names_folders_that_exist():
    assert set(WITHOUT_STEP) <= set(families.family_names())
    for family, reason in WITHOUT_STEP.items():
        assert ("no model" in reason) == (not families.has_model(family))


def asked_for():
    """Every name that ``mmcv.ops`` loads from its compiled module."""
    names = set()
    for path in (Path(mmcv.__file__).parent / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
                names.update(ast.literal_eval(node.args[1]))
    return names


def test_the_page_names_every_operator_that_we_lack(ours):
    listed = re.findall(r"`(\w+)`", " ".join(table("Operators that stay compiled")))
    assert sorted(listed) == sorted(asked_for() - set(ours))
    assert set(ours) <= asked_for()


def test_an_operator_that_we_lack_says_so_and_how_to_get_it():
    from mmcv.ops import box_iou_rotated

    with pytest.raises(UserError, match=r"mmcv operator box_iou_rotated .*make setup OPS=compiled"):
        box_iou_rotated(torch.ones(1, 5), torch.ones(1, 5))
    with pytest.raises(UserError, match="operator knn_forward"):
        finder.missing("knn_forward")()
