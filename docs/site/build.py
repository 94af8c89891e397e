"""`make docs`: stages the pages, makes the reference of the code, builds the site. Any warning fails it.

The reference is made at each build and never committed: it is a function of the code, so a copy could only be stale,
and whoever adds an option or a setting has nothing to remember. No plug-in of the site's builder takes part, so
another builder that reads mkdocs.yml can take its place.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort
from mkdocs.utils.yaml import yaml_load

from docs.site import commands, http, settings
from docs.site.staging import stage

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "docs"
REFERENCE = {"commands": commands.page, "settings": settings.page, "http": http.page}


def main() -> int:
    """Build into build/site; 1 where a link, an anchor or a page is wrong, each of which has been named."""
    stage(ROOT, PAGES)
    (PAGES / "reference").mkdir(exist_ok=True)
    for name, page in REFERENCE.items():
        (PAGES / "reference" / f"{name}.md").write_text(page())
    logging.basicConfig(level=logging.WARNING, format="docs: %(message)s")
    config = load_config(str(ROOT / "mkdocs.yml"), nav=navigation(), strict=True)
    try:
        build(config)
    except Abort as error:
        print(f"docs: {error}; correct what is named above", file=sys.stderr)
        return 1
    if outside := fetched_elsewhere(Path(config.site_dir)):
        print(
            f"docs: {', '.join(outside)} would be fetched by readers' browsers; keep it in docs/site/", file=sys.stderr
        )
        return 1
    print(f"docs: {ROOT / 'build' / 'site' / 'index.html'}")
    return 0


def fetched_elsewhere(site: Path) -> list[str]:
    """Addresses of other hosts that a page of the site would load something from; links for readers are no such."""
    loads = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc="?((?:https?:)?//[^"\s>]+)|"""
                       r"""<link(?![^>]*canonical)[^>]*\shref="?((?:https?:)?//[^"\s>]+)""")  # fmt: skip
    texts = (page.read_text() for page in site.rglob("*.html"))
    return sorted({a or b for text in texts for a, b in loads.findall(text)})


def navigation() -> list[Any]:
    """What mkdocs.yml says, without pages of `optional` that are not written yet."""
    with open(ROOT / "mkdocs.yml", "rb") as file:
        said = yaml_load(file)
    missing = {page for page in said["extra"]["optional"] if not (PAGES / page).exists()}
    return [
        {title: [page for page in pages if page not in missing]} if isinstance(pages, list) else {title: pages}
        for part in said["nav"]
        for title, pages in part.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
