"""The folder that the site is built from: committed pages, each link turned to where its target is on the site.

A page is written to be read in the repository, where links lead to files. On the site README.md is the first page, and
files of source code are none: a link to one becomes its text.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

#: Pages from outside docs/, by where the site has them.
_FROM_ABOVE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_OURS = {"docs/site/extra.css": "extra.css", "docs/site/vendor/iframe-worker.js": "iframe-worker.js"}
#: Sections of docs/reference.md that are pages of their own on the site, made of the code.
GENERATED = {f"reference.md#{name}": f"reference/{name}.md" for name in ("commands", "settings", "http")}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]\[]*)\]\((?P<target>[^)#\s]*)(?P<anchor>#[^)\s]*)?\)")


def places(root: Path) -> dict[str, str]:
    """Where the site has what the repository has: path below `root` to path below the site's folder of pages."""
    kept = ("*.md", "images/*", "examples/*")
    files = [file.relative_to(root) for form in kept for file in sorted((root / "docs").glob(form))]
    return _FROM_ABOVE | _OURS | {file.as_posix(): file.relative_to("docs").as_posix() for file in files}


def turned(text: str, source: str, known: Mapping[str, str], exists: frozenset[str] | None = None) -> str:
    """A page's text with its links as the site needs them.

    Args:
        source: The page's path in the repository.
        known: What `places` says.
        exists: Files of the repository that are no part of the site; None: none of them.

    A link to what is nowhere stays as it is, so that the build complains about it.
    """
    here = PurePosixPath(known[source]).parent

    def turn(link: re.Match[str]) -> str:
        target = link["target"]
        if not target or "://" in target or target.startswith("mailto:"):
            return link[0]
        path = posixpath.normpath((PurePosixPath(source).parent / target).as_posix())
        if path in known:
            place = f"{known[path]}{link['anchor'] or ''}"
            return f"{link['image']}[{link['text']}]({posixpath.relpath(GENERATED.get(place, place), here)})"
        return link["text"] if path in (exists or ()) else link[0]

    return _LINK.sub(turn, text)


def stage(root: Path, folder: Path) -> None:
    """Make `folder` anew with all committed pages and pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    known = places(root)
    for source, place in known.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            text = (root / source).read_text()
            target.write_text(turned(text, source, known, _named_in(root, source, text)))
        else:
            shutil.copyfile(root / source, target)


def _named_in(root: Path, source: str, text: str) -> frozenset[str]:
    """Files and folders of the repository that a page links to."""
    paths = {
        posixpath.normpath((PurePosixPath(source).parent / link["target"]).as_posix()) for link in _LINK.finditer(text)
    }
    return frozenset(path for path in paths if (root / path).exists())
