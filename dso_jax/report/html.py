"""Pieces of a page that needs nothing else: styles, scripts and pictures stand in the file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources


def document(title: str, body: str, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """A complete HTML document.

    Args:
        title: of the window.
        body: HTML of the page.
        styles: assets that follow the style sheet of all reports.
        scripts: assets that run once the page is there; without any it works as well.
    """
    css = "".join(_asset(name) for name in ("report.css", *styles))
    js = "".join(f"<script>{_asset(name)}</script>" for name in scripts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{css}</style></head>\n"
        f"<body><main>{body}</main>{js}</body></html>\n"
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; the cells of `body` are HTML already, and its first column heads the rows."""
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    rows = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>'
        for row in body
    )
    return f"<table><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>"


def scroll(content: str, name: str) -> str:
    """A card that scrolls sideways on a narrow screen, with the keyboard too."""
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"{content}</div>"
    )


def image(data: bytes, text: str, style: str = "", kind: str = "png") -> str:
    """A picture and what to say of it where it cannot be seen."""
    encoded = base64.b64encode(data).decode()
    names = f' class="{style}"' if style else ""
    return f'<img{names} alt="{escape(text)}" src="data:image/{kind};base64,{encoded}">'


def _asset(name: str) -> str:
    return resources.files("dso_jax.report").joinpath(f"assets/{name}").read_text("utf-8")
