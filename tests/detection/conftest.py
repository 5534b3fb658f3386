"""Register components and set MMDetection's default scope, because any test here can be the first of its process."""

from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True, scope="module")
def mmdet_scope():
    from smartclip_det import register_detection  # noqa: F401

    init_default_scope("mmdet")
