"""Focal losses (Lin et al. 2017): forward and backward."""

from __future__ import annotations

import torch

__all__: list[str] = []
