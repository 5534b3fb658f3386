"""Hook that sets the active text bank; nothing else sets it during runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from smartclip_det.core.errors import UserError, check_choice
from smartclip_det.core.text_bank import TextBank
from smartclip_det.core.words import CONTROLS
from smartclip_det.engine.launch import unwrapped
from smartclip_det.models.towers.smartclip import SmartCLIP
from smartclip_det.models.towers.source import load_towers
from smartclip_det.models.vocabulary import build_bank, default_cache_dir


@HOOKS.register_module()
class VocabularyHook(Hook):
    """Sets the bank of the dataset before each train, val and test phase, and restores the previous one afterwards.

    The vocabulary comes from the dataset's ``metainfo``: ``classes``, and optionally ``seen`` and ``templates``.
    Encoders are built on first use and then released; banks are cached by what determines them.

    Args:
        towers: source of the backbone's towers (see ``towers.source.load_towers``).
        templates: template set for datasets that do not name one.
        cache_dir: folder of encoded texts; ``default``: the user's cache; None: no cache.
        control: ``text_shuffled`` gives every class the text of another class in validation and testing, to
            measure the scores of a detector with meaningless names.
    """

    priority = "VERY_HIGH"

    def __init__(
        self,
        towers: Mapping[str, Any],
        templates: str | Sequence[str] = "photo",
        cache_dir: str | None = "default",
        control: str = "none",
    ) -> None:
        self.control = check_choice("control", control, CONTROLS)
        self.towers = dict(towers)
        self.templates = templates
        self.cache_dir = default_cache_dir() if cache_dir == "default" else cache_dir and Path(cache_dir)
        self._banks: dict[Any, TextBank] = {}
        self._before: list[TextBank | None] = []

    def bank_for(self, metainfo: Mapping[str, Any], template_order: str, device: Any = "cpu") -> TextBank:
        """Bank for a dataset's metainfo on a device; encoded once and cached."""
        names = metainfo.get("classes")
        if not names:
            raise UserError(
                "The dataset's metainfo has no classes: set metainfo=dict(classes=(...)) or vocabulary=NAME."
            )
        templates = metainfo.get("templates") or self.templates
        seen = metainfo.get("seen")
        prompted = dict(metainfo.get("prompt_names") or {})
        key = (tuple(names), None if seen is None else tuple(seen), str(templates), template_order, str(prompted))
        if key not in self._banks:
            encoder: SmartCLIP = load_towers(self.towers).to(device)
            bank = build_bank(
                encoder,
                [prompted.get(n, n) for n in names],
                templates=templates,
                template_order=template_order,
                cache_dir=self.cache_dir,
            )
            bank = replace(bank, names=tuple(names))
            self._banks[key] = bank if seen is None else bank.with_seen(seen)
        return self._banks[key]

    def _enter(self, runner: Runner, dataset: Any, training: bool = False) -> None:
        detector = _detector(runner)
        bank = self.bank_for(dataset.metainfo, detector.policy.template_order, next(detector.parameters()).device)
        if self.control == "text_shuffled" and not training:
            bank = bank.text_shuffled()
        self._before.append(detector.set_text_bank(bank))
        # Metrics write these into their stamps.
        facts = {"classes": len(bank), "seen": int(bank.seen.sum()), **bank.provenance}
        if dataset.metainfo.get("prompt_names"):
            facts["prompt_names"] = dataset.metainfo["prompt_names"]
        runner.message_hub.update_info("vocabulary", facts)
        seen = int(bank.seen.sum())
        runner.logger.info(f"Vocabulary: {len(bank)} classes ({seen} seen), {bank.provenance}")

    def _leave(self, runner: Runner) -> None:
        _detector(runner).set_text_bank(self._before.pop())

    def before_train(self, runner: Runner) -> None:
        """Set the training bank."""
        self._enter(runner, runner.train_dataloader.dataset, training=True)

    def after_train(self, runner: Runner) -> None:
        """Restore the previous bank."""
        self._leave(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Set the validation bank."""
        self._enter(runner, runner.val_dataloader.dataset)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the previous bank, and log scores that were set to 0."""
        self._leave(runner)
        self._report(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """Set the test bank."""
        self._enter(runner, runner.test_dataloader.dataset)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the previous bank, and log scores that were set to 0."""
        self._leave(runner)
        self._report(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Log scores that were set to 0."""
        self._report(runner)

    def _report(self, runner: Runner) -> None:
        degenerate, total = _detector(runner).degenerate_counter.read()
        if degenerate:
            runner.logger.warning(
                f"{degenerate} of {total} cosines had an empty vector after masking and were set to 0."
            )


def _detector(runner: Runner) -> Any:
    model: Any = unwrapped(runner.model)
    if not hasattr(model, "set_text_bank"):
        raise UserError(f"VocabularyHook needs an open-vocabulary detector; {type(model).__name__} takes no text bank.")
    return model
