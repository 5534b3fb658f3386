"""Checkpoints without the frozen tower load like full ones, and reject other towers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import load_checkpoint

from smartclip_det.core.errors import UserError
from smartclip_det.engine.checkpoint_hook import TrainableCheckpointHook, trainable_state
from smartclip_det.engine.launch import refuse_foreign_checkpoint
from tests.detection.tiny import TOWERS, build, smoke_config


def runner_of(model, folder, epoch=0):
    return SimpleNamespace(
        model=model, epoch=epoch, iter=7, work_dir=str(folder), logger=SimpleNamespace(info=lambda text: None)
    )


def test_they_hold_what_was_trained_and_restore_all(tmp_path):
    trained = build(smoke_config())
    for p in trained.parameters():
        if p.requires_grad:
            p.data.add_(0.25)
    hook = TrainableCheckpointHook()
    hook.after_train_epoch(runner_of(trained, tmp_path))
    hook.after_train_epoch(runner_of(trained, tmp_path, 1))
    assert [p.name for p in tmp_path.iterdir()] == ["epoch_2.trainable.pth"]
    path = tmp_path / "epoch_2.trainable.pth"
    saved = torch.load(path, weights_only=True)["state_dict"]
    tower = sum(p.numel() for p in trained.backbone.image_tower.parameters())
    whole = sum(v.numel() for v in trained.state_dict().values() if isinstance(v, torch.Tensor))
    assert sum(v.numel() for v in saved.values()) == whole - tower - sum(
        b.numel() for b in trained.backbone.image_tower.buffers()
    )
    fresh = build(smoke_config())
    refuse_foreign_checkpoint(fresh, path)
    load_checkpoint(fresh, str(path), map_location="cpu", strict=False)
    for key, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_other_towers_and_missing_heads_are_refused(tmp_path):
    trained = build(smoke_config())
    state = trainable_state(trained)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    other = build(smoke_config(**{"towers": {**TOWERS, "seed": 1}, "model.backbone.towers": {**TOWERS, "seed": 1}}))
    with pytest.raises(UserError, match="was trained with towers"):
        load_checkpoint(other, str(tmp_path / "a.pth"), map_location="cpu", strict=False)
    torch.save({"state_dict": {k: v for k, v in state.items() if "fc_reg" not in k}}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="fc_reg"):
        refuse_foreign_checkpoint(trained, tmp_path / "b.pth")
    # Without the hash the tower is not identified: a file with heads only is not enough.
    torch.save({"state_dict": {k: v for k, v in state.items() if "_extra_state" not in k}}, tmp_path / "c.pth")
    with pytest.raises(UserError, match="image_tower"):
        refuse_foreign_checkpoint(trained, tmp_path / "c.pth")


def test_a_tower_that_is_trained_needs_no_small_file(tmp_path):
    model = build(smoke_config(**{"model.backbone.frozen": False}))
    TrainableCheckpointHook().after_train_epoch(runner_of(model, tmp_path))
    assert not list(tmp_path.iterdir())
