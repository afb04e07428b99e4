"""What the page is made of: its style, its script and its template, each as one text. Knows nothing of any data.

The page is one file without a request, so all styles are one inline style and all scripts one inline script. Their
order is given here: a script may use names of those before it, and of later ones only when it is called.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["script", "style", "template"]

_VENDOR_STYLES = ("uPlot.min.css",)
_STYLES = ("base.css", "parts.css", "views.css")
_LIVE_STYLES = ("live.css",)
_LIVE_SCRIPTS = ("connection.js", "steering.js", "live.js")
# As published. Their licences stand beside them; the notices go into the page.
_VENDOR_SCRIPTS = (("uPlot.iife.min.js", "uPlot.LICENSE"), ("diff.min.js", "diff.LICENSE"))
_SCRIPTS = (
    "dom.js",
    "format.js",
    "text.js",
    "code.js",
    "state.js",
    "data.js",
    "theme.js",
    "facts.js",
    "rows.js",
    "splits.js",
    "chart.js",
    "overview.js",
    "diff.js",
    "lineage.js",
    "grid.js",
    "example.js",
    "candidates.js",
    "prompts.js",
    "search.js",
    "examples.js",
    "turns.js",
    "setup.js",
    "main.js",
)


@cache
def style(*, live: bool = False) -> str:
    """All styles, for the one `<style>` of the page; with `live` those of the page that follows a run."""
    ours = [*_STYLES, *(_LIVE_STYLES if live else ())]
    return "\n".join([*(_text("vendor", name) for name in _VENDOR_STYLES), *(_text("styles", name) for name in ours)])


@cache
def script(*, live: bool = False) -> str:
    """All scripts, for the one `<script>` of the page. Their names stay within it."""
    vendor = [f"/*\n{_text('vendor', notice).strip()}\n*/\n{_text('vendor', name)}" for name, notice in _VENDOR_SCRIPTS]
    names = [*_SCRIPTS[:-1], *(_LIVE_SCRIPTS if live else ()), _SCRIPTS[-1]]
    ours = "\n".join(_text("scripts", name) for name in names)
    return "\n".join([*vendor, "(() => {", '"use strict";', ours, "})();"])


@cache
def template() -> Template:
    """The page itself.

    It takes `title` (text), `mode` ("report" or "live"), `csp`, `style` and `script` (the texts above), `document`
    (base64 of gzipped JSON; "" on the live page) and `chunks` (an iterable of the same for the examples, chunk by
    chunk). `generate` takes the chunks one at a time.
    """
    from jinja2 import Environment, StrictUndefined  # 50 ms that reading commands do not pay

    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(_text("page.html.j2"))


def _text(*names: str) -> str:
    return resources.files("rlmoptimizer.show.report").joinpath("assets", *names).read_text(encoding="utf-8")
