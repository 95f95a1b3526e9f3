"""One self-contained HTML file: text, tables and pictures as SVG, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from typing import Any

from froude.core.spec import write_atomically

_STYLE = """
:root { color-scheme: light dark; --line: #d0d7de; --soft: #57606a; --accent: #0b5cad; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.lead { color: var(--soft); margin-top: 0; }
div.table { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0 1.2rem; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; } th.left, td.left { text-align: left; }
td, th { white-space: nowrap; } td.left { white-space: normal; min-width: 11rem; }
figure { margin: 1rem 0; overflow-x: auto; background: #fff; border-radius: 6px; }
figcaption, p.note { color: var(--soft); font-size: .88rem; } figcaption { padding: .2rem .5rem; color: #57606a; }
pre { background: rgba(127,127,127,.12); padding: .7rem; white-space: pre-wrap; border-radius: 6px; }
"""


class Report:
    """An HTML report, built top to bottom and written whole."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{html.escape(lead)}</p>')

    def heading(self, text: str) -> Report:
        """A section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")
        return self

    def text(self, text: str, *, note: bool = False) -> Report:
        """A paragraph; a ``note`` is set smaller."""
        style = ' class="note"' if note else ""
        self._parts.append(f"<p{style}>{html.escape(text)}</p>")
        return self

    def code(self, text: str) -> Report:
        """Something to type or to keep, as it is."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")
        return self

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> Report:
        """A table whose first ``left`` columns are text."""

        def cells(tag: str, values: Sequence[str]) -> str:
            return "".join(
                f'<{tag} class="left">{html.escape(v)}</{tag}>' if i < left else f"<{tag}>{html.escape(v)}</{tag}>"
                for i, v in enumerate(values)
            )

        body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
        head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
        self._parts.append(f'<div class="table"><table>{head}<tbody>{body}</tbody></table></div>')
        return self

    def chart(self, chart: Any, caption: str = "") -> Report:
        """An altair chart, drawn as SVG."""
        note = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(f"<figure>{svg(chart)}{note}</figure>")
        return self

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file."""
        head = f'<meta charset="utf-8"><title>{html.escape(self.title)}</title><style>{_STYLE}</style>'
        page = f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(self._parts)}</body></html>'
        write_atomically(path, page)


def svg(chart: Any) -> str:
    """An altair chart as SVG text."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(chart.to_json()))
