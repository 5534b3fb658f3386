"""MkDocs hooks: include pages and files outside ``docs/`` in the site, and check all links.

Links are written relative to the repository. A link to another Markdown file becomes a link to its page; any other
linked file is copied into the site. A broken link is a warning, and ``mkdocs build --strict`` fails on warnings.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from generated import expanded
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

REPO = Path(__file__).resolve().parents[1]
LOG = logging.getLogger("mkdocs.hooks.repository")
#: Group 1 is the target without its anchor, group 2 the anchor.
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|//)([^)\s#]+)(#[^)\s]*)?(?=\))")
#: Fenced blocks and inline code, which contain no links.
CODE = re.compile(r"(^(`{3,}).*?^\2`*$|`[^`\n]+`)", flags=re.M | re.S)


def outside_pages() -> dict[str, str]:
    """Markdown files outside ``docs/`` and their paths in the site."""
    pages = {"data/README.md": "data.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
    for path in sorted((REPO / "configs").glob("*/README.md")):
        pages[path.relative_to(REPO).as_posix()] = f"recipes/{path.parent.name}.md"
    return {source: place for source, place in pages.items() if (REPO / source).is_file()}


def notebook_pages(config: MkDocsConfig) -> list[File]:
    """A page for each notebook, with its stored outputs and images."""
    made = []
    for path in sorted((REPO / "docs/notebooks").glob("*.ipynb")):
        folder = f"{path.stem}_files"
        text, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": folder})
        note = f'<a href="{path.name}" download>Download this notebook</a>; it needs a finished run of `make toy`.'
        made.append(File.generated(config, f"notebooks/{path.stem}.md", content=f"{text.strip()}\n\n{note}\n"))
        for name, content in resources["outputs"].items():
            made.append(File.generated(config, f"notebooks/{name}", content=content))
    return made


OUTSIDE = outside_pages()
SOURCES = {place: source for source, place in OUTSIDE.items()}


def links(markdown: str) -> list[str]:
    """Relative link targets of a text, without anchors."""
    return [m[1] for part in CODE.split(markdown)[::3] for m in LINK.finditer(part)]


def source_of(place: str) -> str:
    """The repository file of a page."""
    return SOURCES.get(place, f"docs/{place}")


def target_of(source: str, link: str) -> str:
    """The repository file that a link in ``source`` refers to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside ``docs/``, and copies of the files that any page links to."""
    for source, place in OUTSIDE.items():
        files.append(from_repository(config, place, source))
    for file in notebook_pages(config):
        files.append(file)
    for page in list(files.documentation_pages()):
        source = source_of(page.src_uri)
        for link in links(expanded(page.content_string)):
            target = target_of(source, link)
            if place_of(target) is None and (REPO / target).is_file():
                place = f"files/{target}"
                if files.get_file_from_path(place) is None:
                    files.append(from_repository(config, place, target))
    return files


def from_repository(config: MkDocsConfig, place: str, source: str) -> File:
    """A repository file at a path in the site."""
    return File.generated(config, place, abs_src_path=str(REPO / source), inclusion=InclusionLevel.INCLUDED)


def place_of(target: str) -> str | None:
    """The page of a repository file, or None."""
    if target.startswith("docs/"):
        return re.sub(r"(notebooks/[^/]+)\.ipynb$", r"\1.md", target.removeprefix("docs/"))
    return OUTSIDE.get(target)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Redirect each link to its page or copy."""
    source = source_of(page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)

    def renewed(match: re.Match[str]) -> str:
        target = target_of(source, match[1])
        place = place_of(target)
        if place is None and (REPO / target).is_file():
            place = f"files/{target}"
        if place is None or files.get_file_from_path(place) is None:
            LOG.warning("%s links to %s, which is not there.", source, match[1])
            return match[0]
        return posixpath.relpath(place, here or ".") + (match[2] or "")

    parts = CODE.split(expanded(markdown))
    parts[::3] = [LINK.sub(renewed, part) for part in parts[::3]]
    del parts[2::3]  # The fence's own group.
    return "".join(parts)


#: URLs that a browser loads when it shows a page.
FETCHED = [
    re.compile(r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?(https?://[^"'\s>]+)"""),
    re.compile(r"""<link\b[^>]*\srel=["']?(?:stylesheet|preconnect)[^>]*\shref=["']?(https?://[^"'\s>]+)"""),
]


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Reject pages that would load anything from another host."""
    for pattern in FETCHED:
        for address in pattern.findall(output):
            LOG.warning("%s fetches %s.", page.file.src_uri, address)
    return output
