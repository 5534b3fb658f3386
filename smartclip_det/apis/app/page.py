"""The gradio page of an :class:`AppService`. Gradio is imported when the page is built."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartclip_det.apis.app.service import AppService, View, content_hash
from smartclip_det.apis.app.snippets import DETECT, GROUND, MASKS
from smartclip_det.apis.app.sources import AppOptions, Sample, source_of
from smartclip_det.apis.predictor_options import load_predictor
from smartclip_det.core.errors import UserError
from smartclip_det.utils.optional import optional

BOX_COLUMNS = ("phrase", "score", "x1", "y1", "x2", "y2")
MASK_COLUMNS = ("phrase", "dimensions kept", "share", "lowest cosine", "highest cosine")
#: Clean-up of the upload folder: interval, and age of removed files, in seconds.
CLEAN_UP = (3600, 86400)
CSS = """
.status textarea {font-weight: 600}
.code textarea {font-family: ui-monospace, monospace; font-size: 12px}
#samples .grid-container {grid-template-columns: repeat(4, minmax(0, 1fr)) !important}
#samples .grid-wrap, #masks-maps .grid-wrap {height: auto; min-height: 0; max-height: none}
"""
#: Queries answered concurrently.
AT_ONCE = 2


@dataclass(frozen=True)
class PageOptions:
    """How the page is served.

    Attributes:
        host: address to bind.
        port: None: the first free port from 7860.
        share: create a public link through gradio's relay.
        max_upload: maximum size of an upload in MB.

    Raises:
        UserError: for a port out of range.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
    max_upload: int = 20

    def __post_init__(self) -> None:
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UserError(f"port must be in 1 to 65535; given {self.port}.")


def serve(options: AppOptions, page: PageOptions) -> None:
    """Serve the page until interrupted.

    Raises:
        UserError: if gradio is missing, for conflicting options, and if the port is in use.
    """
    optional("gradio", "app")
    source = source_of(options)
    predictor = load_predictor(source.predictor)
    with stopped_by_signals(), upload_folder() as folder:
        samples, known = copy_samples(source.samples, folder)
        blocks = build(AppService(predictor, source.predictor, known), samples)
        try:
            url = launch(blocks, page, folder)
            print(f"The page is at {url} (Ctrl+C ends it).", flush=True)
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this context a termination or hang-up signal raises SystemExit, so that uploads are removed."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Not on all systems: Windows has no hang-up signal.
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A signal that is ignored, as nohup does, stays ignored.
    before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Temporary folder for uploads and generated images; removed at the end."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="smartclip-det-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            os.environ.update({} if before is None else {"GRADIO_TEMP_DIR": before})


def copy_samples(samples: Sequence[Sample], folder: Path) -> tuple[list[Sample], dict[str, Path]]:
    """Copy samples to the upload folder, the only one that is served; also returns original paths by content hash."""
    copies, known = [], {}
    for n, sample in enumerate(samples):
        place = folder / "samples" / str(n) / sample.path.name
        place.parent.mkdir(parents=True)
        shutil.copyfile(sample.path, place)
        copies.append(Sample(place, sample.phrases))
        known[content_hash(place)] = sample.path
    return copies, known


def launch(blocks: Any, page: PageOptions, folder: Path) -> str:
    """Start serving in the background; returns the URL.

    Args:
        blocks: the page.
        page: how it is served.
        folder: upload folder, the only one that is served.

    Raises:
        UserError: if the port is in use, or no public link could be created.
    """
    gr = optional("gradio", "app")
    if page.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"note: serving on {page.host}: everyone who can reach this machine can use the page.")
    # System fonts: gradio's default theme loads web fonts.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    try:
        _, local, public = blocks.queue(default_concurrency_limit=AT_ONCE).launch(
            server_name=page.host,
            server_port=page.port,
            share=page.share,
            max_file_size=f"{page.max_upload}mb",
            # Not empty: gradio would read the lists from the environment then.
            allowed_paths=[str(folder)],
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            footer_links=["api"],
            theme=gr.themes.Default(**fonts),
            css=CSS,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise UserError(f"The page cannot be served on {page.host}, port {page.port or 'any'}: {error}") from error
    except RuntimeError as error:
        raise UserError(f"The page has no public link: {error}") from error
    return public or local


def build(service: AppService, samples: Sequence[Sample] = ()) -> Any:
    """Build the page, as ``gradio.Blocks``.

    Args:
        service: answers the queries.
        samples: images of the gallery, inside the upload folder.
    """
    gr = optional("gradio", "app")
    with gr.Blocks(title="smartclip_det", analytics_enabled=False, delete_cache=CLEAN_UP, fill_width=True) as blocks:
        gr.Markdown(f"## smartclip_det\nPhrases in, boxes out. Predictor: {service.predictor.family.kind}.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = _picture(gr)
                phrases = gr.Textbox(
                    label="Phrases, one per line",
                    lines=3,
                    max_lines=8,
                    placeholder="red mug\nleft dog",
                    elem_id="phrases",
                )
                gallery = _gallery(gr, samples)
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                detect = _Tab(gr, DETECT, "Detect", BOX_COLUMNS, threshold=0.5)
                ground = _Tab(gr, GROUND, "Ground", BOX_COLUMNS, threshold=0.0, top_k=True)
                masks = _Tab(gr, MASKS, "Masks", MASK_COLUMNS)
        detect.connect(service.detect, picture, phrases)
        ground.connect(service.ground, picture, phrases)
        masks.connect(service.masks, picture, phrases)
        tabs = (detect, ground, masks)
        outputs = [o for tab in tabs for o in tab.outputs]
        # Answers of the previous image.
        nothing = [v for tab in tabs for v in tab.show(View(f"Press {tab.button.value}."))]
        for changed in (picture.upload, picture.clear):
            changed(lambda: nothing, None, outputs, api_visibility="private", queue=False, show_progress="hidden")
        if gallery is not None:
            _choose(gr, gallery, samples, picture, phrases, outputs, nothing).then(
                **detect.event, api_visibility="private", concurrency_limit=AT_ONCE, concurrency_id="answers"
            )
        blocks.unload(_with_request(gr, lambda request: service.forget(request.session_hash)))
    return blocks


def _picture(gr: Any) -> Any:
    picture = gr.Image(label="Image", type="filepath", sources=["upload", "clipboard"], height=320, elem_id="picture")
    # Keep the uploaded bytes: gradio would re-encode the image, and fail outside our error handling.
    picture.preprocess = lambda given: given.path if given is not None else None
    return picture


def _gallery(gr: Any, samples: Sequence[Sample]) -> Any:
    if not samples:
        return None
    return gr.Gallery(
        [str(s.path) for s in samples],
        label="Samples",
        columns=4,
        height="auto",
        show_label=False,
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="samples",
    )


def _choose(
    gr: Any, gallery: Any, samples: Sequence[Sample], picture: Any, phrases: Any, outputs: list[Any], nothing: list[Any]
) -> Any:
    """Load a sample and its phrases on click."""

    def choose(event: Any) -> list[Any]:
        sample = samples[event.index]
        return [str(sample.path), "\n".join(sample.phrases) if sample.phrases else gr.skip(), *nothing]

    choose.__annotations__["event"] = gr.SelectData
    return gallery.select(
        choose, None, [picture, phrases, *outputs], api_visibility="private", queue=False, show_progress="hidden"
    )


def _with_request(gr: Any, handle: Callable[..., Any]) -> Callable[..., Any]:
    """Annotate the parameter ``request``, which is how gradio knows what to pass; the class is imported late."""
    handle.__annotations__["request"] = gr.Request
    return handle


class _Tab:
    """A tab: button, sliders and outputs."""

    def __init__(
        self,
        gr: Any,
        kind: str,
        title: str,
        columns: Sequence[str],
        *,
        threshold: float | None = None,
        top_k: bool = False,
    ) -> None:
        self.gr, self.kind = gr, kind
        self.event: dict[str, Any] = {}
        with gr.Tab(title, id=kind):
            self.button = gr.Button(title, variant="primary", elem_id=f"{kind}-button")
            self.sliders = []
            if threshold is not None:
                self.sliders.append(
                    gr.Slider(
                        0, 1, threshold, step=0.01, label="Threshold (minimum score)", elem_id=f"{kind}-threshold"
                    )
                )
            if top_k:
                self.sliders.append(gr.Slider(1, 10, 1, step=1, label="Boxes per expression", elem_id=f"{kind}-top-k"))
            status = gr.Textbox(
                label="Answer", lines=1, interactive=False, elem_id=f"{kind}-status", elem_classes="status"
            )
            picture = gr.Image(
                label="Masks" if kind == MASKS else "Boxes",
                type="pil",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                show_label=kind != MASKS,
                elem_id=f"{kind}-boxes",
            )
            self.maps = kind == MASKS
            maps = (
                [gr.Gallery(label="Similarity", columns=2, object_fit="contain", format="png", elem_id=f"{kind}-maps")]
                if self.maps
                else []
            )
            table = gr.Dataframe(headers=list(columns), label="Table", wrap=True, buttons=["copy"], interactive=False)
            with gr.Accordion("Copy: JSON, command line, Python", open=False, elem_id=f"{kind}-copy"):
                texts = [
                    gr.Textbox(
                        label=label,
                        interactive=False,
                        max_lines=12,
                        buttons=["copy"],
                        elem_id=f"{kind}-{label.split()[0].lower()}",
                        elem_classes="code",
                    )
                    for label in ("JSON", "Command line", "Python")
                ]
        self.outputs = [status, picture, *maps, table, *texts]

    def show(self, view: View) -> list[Any]:
        """Values of the output components."""
        return [
            view.status,
            view.picture,
            *([[*view.maps]] if self.maps else []),
            [list(row) for row in view.rows] or None,
            view.data,
            view.command,
            view.lines,
        ]

    def connect(self, ask: Callable[..., View], picture: Any, phrases: Any) -> None:
        """Bind the button and the sliders.

        Args:
            ask: called with session, path, phrases and slider values.
            picture: image component.
            phrases: text component.
        """

        def handle(request: Any, path: str | None, text: str, *values: float) -> list[Any]:
            try:
                return self.show(ask(str(request.session_hash), path, text, *values))
            except UserError as error:
                return self.show(View(f"Error: {error}"))
            except Exception as error:
                traceback.print_exc()
                return self.show(View(f"Error: {type(error).__name__} on the server; see its log."))

        self.event = {
            "fn": _with_request(self.gr, handle),
            "inputs": [picture, phrases, *self.sliders],
            "outputs": self.outputs,
        }
        self.button.click(**self.event, api_name=self.kind, concurrency_limit=AT_ONCE, concurrency_id="answers")
        for slider in self.sliders:
            # Own queue, so that cached answers do not wait for images being encoded.
            slider.change(
                **self.event,
                api_visibility="private",
                trigger_mode="always_last",
                show_progress="hidden",
                concurrency_limit=AT_ONCE,
                concurrency_id="sliders",
            )
