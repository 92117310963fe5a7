"""What MkDocs cannot do by itself: pages of files beside ``docs/``, their links, and pages of the code, one a room."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"^(```\w+) (\S+)$", re.MULTILINE)  # "```yaml conf/mine.yaml": the file that a block is
NESTED = re.compile(r"^ {2,3}(?=[-*] )", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[#)])")


def rooms() -> list[str]:
    """The packages and modules that have a page each, by their dotted names."""
    inside = sorted((ROOT / "fedgh_app").iterdir())
    found = [path.stem for path in inside if path.suffix == ".py" or (path / "__init__.py").exists()]
    return ["strategies", *(f"fedgh_app.{name}" for name in found if name != "__init__")]


def on_config(config: MkDocsConfig) -> None:
    """The pages of the code come last in the navigation."""
    config.nav = [*(config.nav or []), {"Code": [{name: f"code/{name}.md"} for name in rooms()]}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Pages that lie nowhere under ``docs/``."""
    for name, page in PAGES.items():
        if (ROOT / name).exists():
            text = (ROOT / name).read_text(encoding="utf-8")
            # The first page has no neighbours that the navigation beside it could show.
            hidden = "---\nhide: [navigation]\n---\n" if page == "index.md" else ""
            files.append(File.generated(config, page, content=hidden + text))
    for name in rooms():
        files.append(File.generated(config, f"code/{name}.md", content=f"# {name}\n\n::: {name}\n"))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Markdown as GitHub reads it, made MkDocs': links between files, and the indentation of lists within lists.

    A file that is linked to and no page comes along as it is.
    """
    uri = page.file.src_uri
    at = next((name for name, to in PAGES.items() if to == uri), f"docs/{uri}")

    def on_site(match: re.Match[str]) -> str:
        target = os.path.normpath(PurePosixPath(at).parent / match[1])
        if not (ROOT / target).is_file():
            return match[0]  # which MkDocs then tells
        to = PAGES.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(to) is None:
            files.append(File.generated(config, to, abs_src_path=str(ROOT / target)))
        return os.path.relpath(to, PurePosixPath(uri).parent)

    parts = CODE.split(markdown)  # every other one is code
    parts[1::2] = [FILE.sub(r'\1 title="\2"', part) for part in parts[1::2]]
    parts[::2] = [NESTED.sub("    ", LINK.sub(on_site, part)) for part in parts[::2]]
    return "".join(parts)


SECTION = re.compile(r"^(Parameters|Attributes|Returns)\n-+\n((?:.+\n?)+)", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Docstrings with sections in NumPy's style, and with Sphinx's roles, read as those in Google's style."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute before it is parsed."""
        if obj.docstring:
            # A usage line such as "[-m] [--out DIR]" is no Markdown link.
            plain = obj.docstring.value.replace("[-", r"\[-")
            plain = re.sub(r":\w+:`[.~]*([\w.]+)`", r"`\1`", plain)
            obj.docstring.value = SECTION.sub(_google_section, plain)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Document everything where it is defined, and not again where a package passes it on."""
        pkg.exports = None
        for module in pkg.modules.values():
            if not module.is_alias:
                self.on_package(pkg=module)


def _google_section(match: re.Match[str]) -> str:
    """A section whose lines are ``name : what it is``, or names above indented lines."""
    title, body = match.groups()
    if title != "Returns":
        body = re.sub(r"^(\S[^:\n]*?)(?: : *(.*))?$", r"\1: \2", body, flags=re.MULTILINE)
    return f"{title.replace('Parameters', 'Args')}:\n" + re.sub(r"^(?=.)", "    ", body, flags=re.MULTILINE)
