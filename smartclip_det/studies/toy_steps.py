"""Steps on the toy world, for ``smartclip-det toy`` and ``smartclip-det study grid``.

Each step is a public command with a public config. Overrides never address list items by position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.apis.toy_run import TOY_DETECTOR, TOY_TEMPLATE
from smartclip_det.utils.cfg_options import format_options
from smartclip_det.utils.steps import Step, verb

DETECTOR = f"configs/{TOY_DETECTOR}.py"
#: The trained grounding head.
HEAD = "configs/toy/referring_smartclip-toy_toy.py"
BATCH = 128


def step_options(steps: int) -> dict[str, Any]:
    """Overrides of a one-stage alignment for its length; warm-up and captions scale with it."""
    return {
        "train_cfg.max_steps": steps,
        "train_cfg.val_interval": steps,
        "param_scheduler.warmup": int(0.08 * steps),
        "train_dataloader.dataset.scenes.ramp": int(0.6 * steps) * BATCH,
    }


def epoch_options(epochs: int, validate: bool) -> dict[str, Any]:
    """Overrides of a training whose length is given in epochs; validation runs after the last epoch or never."""
    options = {"train_cfg.max_epochs": epochs, "train_cfg.val_interval": epochs}
    # MMEngine always validates after the last epoch, unless validation begins later.
    return options if validate else {**options, "train_cfg.val_begin": epochs + 1}


@dataclass(frozen=True)
class ToySteps:
    """Builds the steps of one seed.

    Attributes:
        out: output folder.
        data: toy world.
        seed: seed of weights, data order and captions.
    """

    out: Path
    data: Path
    seed: int

    def world(self, seed: int | None = None, sizes: Sequence[str] = ()) -> Step:
        """Generate the world; None: with the default seed."""
        seeded = [] if seed is None else ["--seed", str(seed)]
        command = verb("data make-toy", "--out", str(self.data), *seeded, *sizes)
        return Step("world", command, [self.data / "world.json"])

    def alignment(self, config: str, checkpoint: Path, towers: Mapping[str, Any], length: Mapping[str, Any]) -> Step:
        """Train an alignment and write its metrics at the end; the step has the name of the work folder.

        Args:
            config: config in ``configs/toy``, without ``.py``.
            checkpoint: final checkpoint, in the work folder.
            towers: overrides of the towers' source.
            length: :func:`step_options` or :func:`epoch_options`.
        """
        name = checkpoint.parent.name
        metrics = self.out / f"{name}.metrics.json"
        options = {
            **towers,
            "train_dataloader.dataset.seed": self.seed,
            **length,
            "val_evaluator.metrics_file": metrics,
        }
        return self._train(f"configs/toy/{config}.py", checkpoint, options, [metrics])

    def heads(self, config: str, checkpoint: Path, options: Mapping[str, Any]) -> Step:
        """Train heads on frozen towers; the step has the name of the work folder."""
        return self._train(config, checkpoint, options)

    def _train(
        self, config: str, checkpoint: Path, options: Mapping[str, Any], more_outputs: Sequence[Path] = ()
    ) -> Step:
        folder = checkpoint.parent
        command = verb(
            "train",
            config,
            "--work-dir",
            str(folder),
            *format_options({"data_root": f"{self.data}/", "randomness.seed": self.seed, **options}),
        )
        return Step(folder.name, command, [checkpoint, *more_outputs])

    def test(
        self, out: Path, config: str, checkpoint: Path, options: Mapping[str, Any], control: str | None = None
    ) -> Step:
        """Test heads and write predictions and metrics; the step has the name of the prediction file."""
        command = verb(
            "test",
            config,
            str(checkpoint),
            "--work-dir",
            str(self.out / "tests" / out.stem),
            "--out",
            str(out),
            *(["--control", control] if control else []),
            *format_options({"data_root": f"{self.data}/", **options}),
        )
        return Step(out.stem, command, [out, out.with_suffix(".metrics.json")])

    def probe(
        self,
        name: str,
        towers: Path | None,
        modes: Sequence[str],
        text_norm: str = "masked",
        views: Sequence[str] = ("crop", "dense"),
    ) -> Step:
        """Run the region probe.

        Args:
            name: name of the towers.
            towers: checkpoint of the towers; None: random weights.
            modes: mask modes.
            text_norm: text norm that the towers were trained with.
            views: how region vectors are computed.
        """
        annotations, out = self.data / "annotations", self.out / f"probe_{name}.json"
        command = verb(
            "probe",
            *(["--encoder", str(towers)] if towers else ["--arch", "SmartCLIP-toy"]),
            "--ann",
            str(annotations / "instances_val.json"),
            "--images",
            str(self.data / "images/val"),
            "--split-file",
            str(annotations / "split.json"),
            "--templates",
            TOY_TEMPLATE,
            "--crop-context",
            "2.0",
            "--views",
            *views,
            "--mask-modes",
            *modes,
            "--text-norm",
            text_norm,
            "--out",
            str(out),
        )
        return Step(out.stem, command, [out])
