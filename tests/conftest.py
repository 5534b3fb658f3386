"""Shared fixtures. Real test data are outside the repository; without them, the tests that need them are skipped."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

import smartclip_det  # noqa: F401  (registers the operators for MMDetection)

REPO = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # tests run in parallel processes


def find_shared() -> Path | None:
    candidates = [os.environ.get("SMARTCLIP_DET_TEST_DATA"), REPO / "shared/data", REPO.parent / "shared/data"]
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real test data (photographs, annotations, expected values)."""
    found = find_shared()
    if found is None:
        message = "no real test data: set SMARTCLIP_DET_TEST_DATA to their folder"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return found


@pytest.fixture
def repo() -> Path:
    return REPO
