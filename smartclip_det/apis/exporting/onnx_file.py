"""Write a graph as an ONNX file with metadata, using ``torch.export`` and ``torch.onnx``."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim

from smartclip_det.apis.exporting.graphs import Graph
from smartclip_det.apis.exporting.selection import onnx_translations
from smartclip_det.core.errors import UserError
from smartclip_det.utils.optional import optional

#: Metadata key ``format``.
FORMAT = "smartclip_det.onnx/1"
#: Limit of a protobuf message; weights of larger graphs go to a second file.
_LARGEST = 2**31 - 2**20
_EXPORT_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


@torch.no_grad()
def write_onnx(graph: Graph, size: tuple[int, int], path: Path, metadata: Mapping[str, Any]) -> Path:
    """Trace a graph and write it; a single file is written atomically.

    Args:
        graph: in eval mode, on the CPU.
        size: H and W of the input.
        path: file to write.
        metadata: entries of ``metadata_props``; values other than strings are written as JSON.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    optional("onnx", "export")
    optional("onnxscript", "export")
    inputs = graph.examples(size)
    # torch.export specialises a length of 1, so examples have 2; the file accepts 1 as well.
    free = {axis: Dim(axis, min=2) for axes in graph.varying.values() for axis in axes.values()}
    shapes = {n: {d: free[a] for d, a in graph.varying.get(n, {}).items()} for n in inputs}
    with _quiet(), graph.traceable():
        program = torch.export.export(graph, (), kwargs=inputs, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(graph.outputs),
            custom_translation_table=onnx_translations(),
            verbose=False,
        )
    assert exported is not None
    props = exported.model.metadata_props
    props.clear()
    props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in {"format": FORMAT, **metadata}.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(p.numel() * p.element_size() for p in (*graph.parameters(), *graph.buffers()))
    if weights > _LARGEST:
        exported.save(str(path), external_data=True)
        return path
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    exported.save(str(part), external_data=False)
    os.replace(part, path)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings about its own libraries."""
    loggers = [logging.getLogger(n) for n in _EXPORT_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def open_session(path: Path, threads: int = 0) -> Any:
    """Open an onnxruntime session on the CPU.

    Args:
        path: ONNX file.
        threads: threads per operator; 0 for one per core.

    Raises:
        UserError: onnxruntime is not installed or cannot open the file.
    """
    runtime = optional("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"onnxruntime cannot open {path} ({str(error).splitlines()[0]}).") from error
