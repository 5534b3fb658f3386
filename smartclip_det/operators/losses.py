"""Focal losses (Lin et al. 2017): forward and backward."""

from __future__ import annotations

__all__: list[str] = []
