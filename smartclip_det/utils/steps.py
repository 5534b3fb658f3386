"""Long jobs as a chain of commands: finished steps are skipped, and progress is shown."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartclip_det.core.errors import UserError
from smartclip_det.utils.child_processes import start_python
from smartclip_det.utils.config_files import config_root, find_config
from smartclip_det.utils.files import write_whole
from smartclip_det.utils.parallel import available_cores

#: Folder that this package was imported from.
ROOT = Path(__file__).resolve().parents[2]


def verb(name: str, *arguments: str) -> list[str]:
    """Python arguments that run a verb of ``smartclip-det``, wherever the package is installed."""
    return ["-m", "smartclip_det", *name.split(), *arguments]


@dataclass
class Step:
    """One command.

    Attributes:
        name: also the name of its log file.
        command: Python arguments, see :func:`verb`; paths are relative to the current folder of this process.
        outputs: files that exist when the step is done.
        work_dir: work folder of a training that continues from its last checkpoint (``--resume``) if it was
            interrupted and neither command nor configs have changed; None: start from the beginning.
    """

    name: str
    command: list[str]
    outputs: list[Path] = field(default_factory=list)
    work_dir: Path | None = None

    def config_hash(self) -> str:
        """Hash of the configs that the command names, including their bases; empty without configs."""
        paths = [find_config(a) for a in self.command if _is_config(a)]
        if not paths:
            return ""
        from mmengine.config import Config

        texts = [Config.fromfile(p, import_custom_modules=False).pretty_text for p in paths]
        return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _is_config(argument: str) -> bool:
    """Whether an argument is an existing ``.py`` file or a shipped config."""
    if not argument.endswith(".py"):
        return False
    return Path(argument).is_file() or (config_root() / argument.removeprefix("configs/")).is_file()


class StepRunner:
    """Runs stages of steps. A finished step runs again only if it changed or an earlier step ran.

    A step has changed if its command or one of its configs has; code changes are not detected.
    """

    def __init__(self, folder: Path) -> None:
        """Initialise the runner, reading the state of an earlier run.

        Args:
            folder: for logs and for ``steps.json``, which records finished steps.
        """
        self.folder = folder
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self._state = folder / "steps.json"
        self.done: dict[str, dict[str, Any]] = {}
        if self._state.is_file():
            self.done = json.loads(self._state.read_text(encoding="utf-8"))
        self.ran: set[str] = set()
        #: Seconds spent in all calls since the first step last ran.
        self.spent = 0.0
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """Duration of each finished step, including earlier calls."""
        return {name: float(entry["seconds"]) for name, entry in self.done.items()}

    def run_stages(self, stages: Sequence[Sequence[Step]]) -> None:
        """Run the stages in order; the steps of one stage are independent and run in parallel."""
        begin = time.perf_counter()
        try:
            for number, stage in enumerate(stages, 1):
                self._run_stage(stage, f"[{number}/{len(stages)}]")
        finally:
            restarted = all(s.name in self.ran for s in stages[0])
            self.spent = time.perf_counter() - begin + (0.0 if restarted else self._spent_before())
            write_json(self.folder / "spent.json", {"seconds": self.spent})

    def _spent_before(self) -> float:
        path = self.folder / "spent.json"
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else 0.0

    def _run_stage(self, stage: Sequence[Step], label: str) -> None:
        due = [s for s in stage if self.ran or not self._is_done(s)]
        for step in stage:
            if step not in due:
                print(f"{label} {step.name}: already done ({self.done[step.name]['seconds']:.0f} s)", flush=True)
        parallel = max(1, min(len(due), available_cores()))
        threads = max(1, available_cores() // parallel)
        with ThreadPoolExecutor(parallel) as pool:
            for _ in pool.map(lambda step: self.run(step, threads, label), due):
                pass

    def _is_done(self, step: Step) -> bool:
        before = self.done.get(step.name)
        same = before is not None and before["command"] == step.command and before.get("configs") == step.config_hash()
        return same and all(p.is_file() for p in step.outputs)

    def run(self, step: Step, threads: int, label: str = "") -> float:
        """Run one command and print its latest progress line every ten seconds.

        Raises:
            UserError: if it fails or does not write its outputs, with the end of its log.
        """
        print(f"{label} {step.name}: python {shlex.join(step.command)}", flush=True)
        log = self.folder / "logs" / f"{step.name}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": python_path()}
        configs = step.config_hash()
        resume = self._resume_options(step, configs)
        begin = time.perf_counter()
        exit_code, shown = start_python([*step.command, *resume], log, environment), begin
        while (code := exit_code()) is None:
            time.sleep(0.2)
            if time.perf_counter() - shown >= 10:
                shown = time.perf_counter()
                print(f"    {step.name} {shown - begin:4.0f} s  {last_progress(log)}", flush=True)
        seconds = time.perf_counter() - begin
        missing = [p for p in step.outputs if not p.is_file()]
        if code or missing:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise UserError(
                f"{step.name} failed (exit {code}"
                + (f", did not write {missing[0]}" if missing else "")
                + f"). End of {log}:\n{tail}\nRun the same command again to resume."
            )
        self._mark(step).unlink(missing_ok=True)
        with self._lock:
            self.done[step.name] = {"command": step.command, "seconds": seconds, "configs": configs}
            self.ran.add(step.name)
            write_json(self._state, self.done)
        print(f"{label} {step.name}: {seconds:.0f} s", flush=True)
        return seconds

    def _mark(self, step: Step) -> Path:
        """File that exists while a step that can resume is unfinished."""
        return self.folder / "logs" / f"{step.name}.started.json"

    def _resume_options(self, step: Step, configs: str) -> list[str]:
        """Options that continue an interrupted training; checkpoints of other settings are left alone."""
        if step.work_dir is None:
            return []
        mark, started = self._mark(step), {"command": step.command, "configs": configs}
        if not mark.is_file() or json.loads(mark.read_text(encoding="utf-8")) != started:
            write_json(mark, started)
            return []
        last = step.work_dir / "last_checkpoint"
        if not last.is_file() or last.stat().st_mtime_ns < mark.stat().st_mtime_ns:
            return []
        print(f"    {step.name} was interrupted: resuming from its last checkpoint", flush=True)
        return ["--resume"]


def python_path() -> str:
    """``PYTHONPATH`` for a child process to import this same package; an installed package needs no help."""
    given = os.environ.get("PYTHONPATH", "")
    if ROOT.name in ("site-packages", "dist-packages"):
        return given
    return os.pathsep.join([str(ROOT), *([given] if given else [])])


def last_progress(log: Path) -> str:
    """Latest progress line of a log."""
    return next(_progress_lines(log.read_text(encoding="utf-8", errors="replace")), "starting")


def _progress_lines(text: str) -> Iterator[str]:
    for line in reversed(text.replace("\r", "\n").splitlines()):
        if "eta:" in line:
            yield line.split(" - INFO - ")[-1].split("time:")[0].strip()
        elif "it/s" in line or "image/s" in line or "s/image" in line:
            yield line.strip()


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically."""
    write_whole(path, json.dumps(content, indent=2) + "\n")
