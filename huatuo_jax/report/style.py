"""The one look of all pictures and pages: colours, matplotlib figures, and HTML pages that need no other file.

Both programs draw with it: `huatuo report` (`run_page.py`), and in `data_tools` the mixing curve, the coverage of unified answers
and the pages of `collect`. What must hold: importing it costs nothing, for matplotlib is imported when a figure is made, so that
`--help` of a command that can draw stays instant. The same figure always gives the same bytes: no date, no version goes into a
file.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from huatuo_jax.config import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from huatuo_jax.io.files import PathLike

PALETTE = ("#0072B2", "#56B4E9", "#009E73", "#94C973", "#E69F00", "#F0C566", "#D55E00", "#CC79A7", "#5B4B8A", "#777777")
"""Colours of all pictures, in the order of a mixture's sources: Okabe and Ito's, which are told apart with any colour vision,
each beside a lighter one for the other language."""

INK, FAINT = "#222222", "#dddddd"

# What matplotlib would write into the file by itself: its version, or the time.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

_STYLE = """
body{font:15px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;color:#222}
body{max-width:66rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
img{width:100%;max-width:54rem} table{border-collapse:collapse}
td,th{padding:.25rem 1.2rem .25rem 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
table.total tr:last-child td{border-top:1px solid #999;font-weight:600}
pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:12px} .faint{color:#777}
"""


def colors(count: int) -> list[str]:
    """The first `count` colours of the palette, which starts again where it is too short."""
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def new_figure(
    width: float = 8.0, height: float = 4.2, columns: int = 1, grid: Literal["x", "y", "both"] | None = "y"
) -> "Figure":
    """A figure with `columns` axes side by side (`[axes] = new_figure().axes`), unframed, with faint grid lines behind the data.

    `width` and `height` are inches. The figure belongs to no window and no pyplot state, so any thread may draw.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # Lines behind the data: matplotlib would draw them over bars.
    for axes in figure.subplots(1, columns, squeeze=False)[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        if grid:
            axes.grid(axis=grid, color=FAINT, linewidth=0.8)
    return figure


def image_format(path: "PathLike") -> str:
    """The format that a picture's file name asks for. Raises ConfigError if it is not png, svg or pdf."""
    ending = str(path).rsplit(".", 1)[-1].lower()
    require(ending in _METADATA, f"{path}: cannot draw a .{ending} file; choose a name that ends in .png, .svg or .pdf")
    return ending


def image(figure: "Figure", format: str = "png") -> bytes:
    """The figure as the content of a file."""
    buffer = io.BytesIO()
    # A fixed resolution, so that a picture does not depend on the user's matplotlib settings.
    figure.savefig(buffer, format=format, dpi=130, metadata=_METADATA[format])
    return buffer.getvalue()


def save_figure(path: "PathLike", figure: "Figure") -> None:
    """Writes a figure whole or not at all, in the format of the file's name (see `image_format`)."""
    from huatuo_jax.io.files import write_bytes

    write_bytes(path, image(figure, image_format(path)))


def html_image(title: str, png: bytes) -> str:
    """A PNG within the page itself."""
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], total: bool = False) -> str:
    """A table whose cells are HTML (escape what comes from data); all columns but the first hold numbers.

    `head` may be empty; `total` sets the last row apart as the sum of the others.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        first, *numbers = cells
        return f"<tr><{tag}>{first}</{tag}>{''.join(f'<{tag} class=n>{number}</{tag}>' for number in numbers)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table{' class=total' if total else ''}>{row(head, 'th') if head else ''}{body}</table>"


def html_page(title: str, parts: Iterable[str], style: str = "") -> str:
    """A page of these parts under its title; `style` adds CSS rules to those that all pages share."""
    # Fonts and pictures are named or embedded, never linked: the page can be mailed, and opened without a network.
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style>"
    return f"<!doctype html><html><head>{head}</head><body><h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
