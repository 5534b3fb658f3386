"""Grounding DINO with a sentence-level score: equal at step 0, training the branch only, training everything."""

from __future__ import annotations

import string

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from smartclip_det.core.errors import UserError
from smartclip_det.engine.config import load_config
from smartclip_det.engine.launch import refuse_foreign_checkpoint
from smartclip_det.models.detectors.smartclip_grounding_dino import LAYOUTS, recognise
from tests.conftest import REPO

transformers = pytest.importorskip("transformers", reason="Grounding DINO's text side needs transformers")
CONFIG = REPO / "configs/smartclip_refexp/mm-grounding-dino-t_smartclip-b16_c1_refcoco.py"
TOWERS = {"arch": "SmartCLIP-tiny", "seed": 0}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small random BERT with letters as words."""
    folder = tmp_path_factory.mktemp("bert")
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "dog", "red", "cup", *letters]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(words), **sizes)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def small(bert, plain=False, **options):
    """The real config, reduced for tests, or the MMDetection detector that it extends."""
    config = load_config(CONFIG, {"towers": dict(TOWERS), **options}).model
    config.language_model.name = str(bert)
    config.num_queries = 12
    config.backbone.update(embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], init_cfg=None, with_cp=False)
    config.neck.in_channels = [48, 96, 192]
    # As in the real config, with activation checkpointing of every layer.
    config.encoder.update(num_layers=1, num_cp=1)
    config.decoder.num_layers = 2
    config.test_cfg.max_per_img = 5
    if plain:
        config = {k: v for k, v in config.items() if k not in ("towers", "mask_mode", "trained")} | {
            "type": "GroundingDINO"
        }
    return config


def build(bert, plain=False, **options):
    from mmdet.registry import MODELS

    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(small(bert, plain, **options))
    # MMDetection leaves the level embedding uninitialised.
    model.init_weights()
    return model


def batch(texts, boxes=1):
    samples = []
    for n, text in enumerate(texts):
        s = DetDataSample(
            metainfo={
                "img_shape": (64, 96),
                "ori_shape": (64, 96),
                "batch_input_shape": (64, 96),
                "pad_shape": (64, 96),
                "scale_factor": (1.0, 1.0),
                "text": text,
                "custom_entities": False,
                "tokens_positive": -1,
                "img_id": n,
            }
        )
        s.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4, 40, 40]])[:boxes], labels=torch.zeros(boxes, dtype=torch.long)
        )
        samples.append(s)
    return torch.randn(len(texts), 3, 64, 96, generator=torch.Generator().manual_seed(1)), samples


def scores(model, texts=("red cup .", "dog .")):
    images, samples = batch(texts)
    with torch.no_grad():
        found = model.eval().predict(images, samples)
    return torch.stack([f.pred_instances.scores for f in found]), torch.stack([f.pred_instances.bboxes for f in found])


def train_step(model, steps=1):
    images, samples = batch(["red cup .", "dog ."])
    for s, end in zip(samples, (7, 3), strict=True):
        s.set_metainfo({"tokens_positive": {0: [[0, end]]}})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(v for k, v in model.train().loss(images, samples).items() if "loss" in k).backward()
        optimizer.step()


def changed(model, before):
    return {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}


def test_it_starts_as_the_detector_whose_weights_it_reads(bert, tmp_path):
    plain, ours = build(bert, plain=True), build(bert)
    missing, unexpected = ours.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(".project." in k or ".scale" in k or k.startswith("source.") for k in missing)
    for a, b in zip(scores(ours), scores(plain), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "plain.pth")
    refuse_foreign_checkpoint(ours, tmp_path / "plain.pth")
    state = {k: v for k, v in plain.state_dict().items() if k != "level_embed"}
    torch.save({"state_dict": state}, tmp_path / "broken.pth")
    with pytest.raises(UserError, match="level_embed"):
        refuse_foreign_checkpoint(ours, tmp_path / "broken.pth")
    with torch.no_grad():
        for branch in ours.bbox_head.cls_branches:
            branch.scale.fill_(3.0)
    assert not torch.allclose(scores(ours)[0], scores(plain)[0], atol=1e-3)
    again = build(bert)
    again.load_state_dict(ours.state_dict())
    assert torch.equal(scores(again)[0], scores(ours)[0])


def test_c1_trains_the_branch_alone(bert):
    model = build(bert)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_step(model, steps=2)
    moved = changed(model, before)
    assert moved
    assert all(".project." in k or ".scale" in k for k in moved)
    # The branch of the encoder's proposals gets gradients as well.
    assert {k.split(".")[2] for k in moved} == {"0", "1", "2"}
    assert not model.backbone.training
    assert model.training


def test_c0_trains_nothing_and_c2_everything(bert):
    assert not any(p.requires_grad for p in build(bert, **{"model.trained": "none"}).parameters())
    model = build(bert, **{"model.trained": "all"})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train_step(model)
    moved = changed(model, before)
    for part in ("backbone.", "neck.", "encoder.", "decoder.", "bbox_head.reg_branches.", "language_model."):
        assert any(k.startswith(part) for k in moved), part
    assert not any(p.requires_grad for p in model.source.unregistered[0].parameters())


def test_bad_sentences_and_foreign_weights_are_told(bert):
    model = build(bert)
    images, samples = batch(["dog .", "dog ."])
    samples[0].set_metainfo({"text": ("dog", "cup")})
    with pytest.raises(UserError, match="one sentence per image"):
        model.predict(images, samples)
    with pytest.raises(UserError, match="trained"):
        build(bert, **{"model.trained": "branches"})
    for name, parts in LAYOUTS.items():
        assert recognise({k: torch.empty(shape, device="meta") for k, shape in parts.items()}) == name
    with pytest.raises(UserError, match="Closest layout: .*level_embed"):
        recognise(
            {
                k: torch.empty(s, device="meta")
                for k, s in LAYOUTS["MM-Grounding-DINO Swin-T"].items()
                if k != "level_embed"
            }
        )


@pytest.mark.slow
def test_the_layouts_are_those_of_mmdetections_configs(bert):
    """Keys and shapes of every part of the manifest, for models built by MMDetection's own configs."""
    import mmdet
    from mmengine.config import Config

    folder = REPO.joinpath(mmdet.__file__).parent / ".mim/configs"
    files = {
        "MM-Grounding-DINO Swin-T": "mm_grounding_dino/grounding_dino_swin-t_pretrain_obj365.py",
        "MM-Grounding-DINO Swin-L": "mm_grounding_dino/grounding_dino_swin-l_pretrain_all.py",
        "Grounding DINO Swin-T": "grounding_dino/grounding_dino_swin-t_pretrain_obj365_goldg_cap4m.py",
        "Grounding DINO Swin-B": "grounding_dino/grounding_dino_swin-b_pretrain_mixeddata.py",
    }
    from mmdet.registry import MODELS

    words = "language_model.language_backbone.body.model.embeddings.word_embeddings.weight"
    for name, file in files.items():
        config = Config.fromfile(folder / file).model
        config.language_model.name = str(bert)
        config.backbone.update(init_cfg=None, depths=[1, 1, 1, 1])
        config.encoder.update(num_layers=1, num_cp=0)
        config.decoder.num_layers = 1
        init_default_scope("mmdet")
        state = MODELS.build(config).state_dict()
        # Vocabulary and width of the real BERT; everything else is from the config.
        state[words], state["text_feat_map.weight"] = torch.empty(30522, 768), torch.empty(256, 768)
        assert recognise(state) == name


def test_pipelines_are_found_in_wrapped_data_sets_and_released_buffers_are_no_fault(bert, tmp_path):
    from mmengine.config import ConfigDict

    from smartclip_det.apis.detector_loading import array_pipeline
    from smartclip_det.apis.proposals import DetectorProposals

    config = load_config(CONFIG, {"towers": dict(TOWERS)})
    assert config.test_dataloader.dataset.type == "ConcatDataset"
    assert type(array_pipeline(config.test_dataloader.dataset).transforms[0]).__name__ == "LoadImageFromNDArray"
    with pytest.raises(UserError, match="no pipeline"):
        array_pipeline({"type": "ConcatDataset", "datasets": []})
    config.model = ConfigDict(small(bert, plain=True))
    config.dump(tmp_path / "config.py")
    plain = build(bert, plain=True)
    state = {
        **plain.state_dict(),
        "language_model.language_backbone.body.model.embeddings.position_ids": torch.arange(512)[None],
    }
    torch.save({"state_dict": state}, tmp_path / "released.pth")
    detector = DetectorProposals(tmp_path / "config.py", tmp_path / "released.pth")
    assert torch.equal(detector.detector.level_embed, plain.level_embed)


def test_its_boxes_are_proposals_for_each_sentence(bert):
    import numpy as np

    from smartclip_det.apis import proposals

    detector = proposals.DetectorProposals.__new__(proposals.DetectorProposals)
    from mmengine.dataset import Compose

    init_default_scope("mmdet")
    detector.detector = build(bert, plain=True).eval()
    detector.pipeline = Compose(
        [
            {"type": "mmdet.LoadImageFromNDArray"},
            {"type": "mmdet.Resize", "scale": (96, 64), "keep_ratio": True},
            {
                "type": "mmdet.PackDetInputs",
                "meta_keys": (
                    "img_id",
                    "ori_shape",
                    "img_shape",
                    "scale_factor",
                    "text",
                    "custom_entities",
                    "tokens_positive",
                ),
            },
        ]
    )
    assert detector.reads_text
    image = np.random.default_rng(0).integers(0, 255, (128, 192, 3), dtype=np.uint8)
    found = detector(image, ["red cup", "dog"], top_k=3)
    assert [f[0].shape for f in found] == [(3, 4), (3, 4)]
    assert all((np.diff(f[1]) <= 0).all() for f in found)
    assert not np.allclose(found[0][1], found[1][1])
