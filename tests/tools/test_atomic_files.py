"""Checkpoints are written in the background of training, atomically."""

from __future__ import annotations

import threading

import pytest

from smartclip_det.core.errors import UserError
from smartclip_det.engine import atomic_files
from smartclip_det.engine.atomic_files import AtomicLocalBackend, finish_writes, last_good_checkpoint


def test_a_put_returns_before_the_file_is_there_and_one_is_on_its_way_at_a_time(tmp_path, monkeypatch):
    gate, order, whole = threading.Event(), [], atomic_files.put_whole

    def slow(content, path):
        gate.wait(20)
        order.append(path.name)
        whole(content, path)

    monkeypatch.setattr(atomic_files, "put_whole", slow)
    backend = AtomicLocalBackend()
    backend.put(b"one", tmp_path / "iter_1.pth")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no checkpoint"):
        last_good_checkpoint(tmp_path)
    second = threading.Thread(target=backend.put, args=(b"two", tmp_path / "iter_2.pth"))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    gate.set()
    second.join(20)
    assert (tmp_path / "iter_1.pth").read_bytes() == b"one"
    finish_writes()
    assert order == ["iter_1.pth", "iter_2.pth"]
    assert last_good_checkpoint(tmp_path).name == "iter_2.pth"
    assert not list(tmp_path.glob("*.part"))


def test_a_full_disk_is_told_at_the_next_write_or_the_end(tmp_path):
    (tmp_path / "file").write_text("")
    AtomicLocalBackend().put(b"x", tmp_path / "file/iter_1.pth")
    with pytest.raises(UserError, match="could not be written"):
        finish_writes()
    finish_writes()
