"""`make docs`: the pages build without a warning, and read without the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


@pytest.mark.slow
def test_the_site_builds_strictly_and_its_pages_fetch_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    unreachable = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "HTTP_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(build, cwd=REPOSITORY, env=os.environ | unreachable, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {str(page.relative_to(tmp_path)): page.read_text() for page in tmp_path.rglob("*.html")}
    assert {"index.html", "axes.html", "code/strategies.html", "code/fedgh_app.server.html"} <= pages.keys()
    assert not [(name, found[0]) for name, page in pages.items() if (found := FETCHED.search(page))]
    styles = "".join(file.read_text() for file in tmp_path.rglob("*.css"))
    assert not re.search(r"url\([\"']?(?:https?:)?//", styles)
    # What the hook is for: a linked file that is no page, and sections in NumPy's style.
    assert (tmp_path / "conf" / "config.yaml").exists()
    assert not [name for name, page in pages.items() if "\nParameters\n---" in page]
    assert "<b><code>granularity</code></b>" in pages["code/strategies.html"]
