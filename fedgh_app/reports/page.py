"""The report on a sweep, or on any runs, as a page to read: ``report.html``, all in one file, and ``report.md``."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedgh_app.errors import UserError
from fedgh_app.reports.content import FIGURES, content_of
from fedgh_app.reports.figures import FAINT, INK, PAPER
from fedgh_app.reports.pictures import dash
from fedgh_app.reports.statistics import Setting, Spread, p_text, readable, spread_text
from fedgh_app.vision.files import replacing
from fedgh_app.words import percentage


def write(settings: Sequence[Setting], folders: Sequence[Path], out: Path, baseline: str | None = None) -> list[Path]:
    """Write the page and the Markdown file of the report into ``out``, made if need be, and return them.

    The runs were found in ``folders``; sweeps among them tell of their failed jobs. UserError where ``out`` cannot be
    written to, or there is no such ``baseline``.
    """
    content = content_of(settings, folders, baseline)
    texts = {out / name: _render(name, content) for name in ("report.html", "report.md")}
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = out / FIGURES
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.svg"):
            old.unlink()
        for picture in filter(None, [content["outcomes"], content["forest"], *content["curves"], *content["cosines"]]):
            (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8", errors="replace")
        for file, text in texts.items():
            with replacing(file) as draft:
                draft.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there ({error.strerror})") from None
    return list(texts)


def _render(name: str, content: Mapping[str, Any]) -> str:
    html = name.startswith("report.html")
    environment = Environment(
        loader=PackageLoader("fedgh_app.reports"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["is_best"] = _is_best
    environment.filters |= {
        "cell": _cell,
        "data": _data_uri,
        "percent": lambda value: dash(percentage(value)),
        "epsilon": lambda value: dash("-" if value is None else f"{value:.3g}"),
        "readable": readable,
        "p": lambda value: dash(p_text(value)),
        "spread": lambda spread: dash(spread_text(spread)),
        "strong": lambda text, spread, best: f"**{text}**" if _is_best(spread, best) else text,
    }
    text = environment.get_template(f"{name}.jinja").render(content)
    return text if html else re.sub(r"\n{3,}", "\n\n", text)


def _is_best(spread: Spread | None, best: float | None) -> bool:
    return best is not None and spread is not None and spread["mean"] == best


def _data_uri(svg: str) -> str:
    """The figure for the page itself, whose colours it takes where a reader wants a dark one."""
    for colour, name in ((INK, "ink"), (PAPER, "paper"), (FAINT, "faint")):
        svg = svg.replace(colour, f"var(--{name})")
    style = (
        f"<style>:root{{--ink:{INK};--paper:{PAPER};--faint:{FAINT}}}"
        "@media (prefers-color-scheme:dark){:root{--ink:#e3e6ea;--paper:#1b1f24;--faint:#7c8590}}</style>"
    )
    svg = re.sub(r"(<svg[^>]*>)", lambda tag: tag[1] + style, svg, count=1)
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _cell(text: object) -> str:
    """Somebody else's text in a cell of a Markdown table."""
    return " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
