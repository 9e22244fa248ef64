"""Figures and history in, `plots/*.png` and one self-contained HTML page out."""

import base64
import html
import io
import json
from pathlib import Path

from matplotlib.figure import Figure

from huatuo_jax.io.files import write_bytes, write_text
from huatuo_jax.report.history import History, read_history
from huatuo_jax.report.plots import figures

STYLE = """
body{font:15px/1.55 system-ui,"Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif;color:#222}
body{max-width:62rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem} h2{font-size:1.1rem;margin-top:2.2rem;border-bottom:1px solid #ddd}
img{width:100%;max-width:50rem} table{border-collapse:collapse}
td,th{padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums} pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:12px}
.q{color:#0072B2}.faint{color:#777}
"""


def write_report(run: Path) -> dict[str, str]:
    """Writes the plots and `report.html` of a run; returns name → path of everything written."""
    history = read_history(run)
    pictures = {name: _png(figure) for name, figure in figures(history).items()}
    written = {}
    for name, content in pictures.items():
        written[name] = str(run / "plots" / f"{name}.png")
        write_bytes(written[name], content)
    written["report"] = str(run / "report.html")
    write_text(written["report"], _page(history, pictures))
    return written


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _page(history: History, pictures: dict[str, bytes]) -> str:
    name = html.escape(history.config["name"])
    parts = [f"<h1>{name}</h1>", _summary(history)]
    for title, content in pictures.items():
        image = base64.b64encode(content).decode()
        parts.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{image}">')
    if history.mixing_note:
        parts.append(f'<p class="faint">No mixing curve: {html.escape(history.mixing_note)}</p>')
    parts += [_answers(history), _recall(history)]
    parts.append(f"<h2>Resolved config</h2><pre>{html.escape(json.dumps(history.config, ensure_ascii=False, indent=2))}</pre>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _summary(history: History) -> str:
    first, last = history.steps[0], history.steps[-1]
    rows = {
        "steps": f"{last['step']:,}",
        "loss": f"{_number(first['loss'])} → {_number(last['loss'])}",
        "tokens": f"{last['tokens']:,} ({last['target_tokens']:,} targets)",
        "tokens per second": f"{last['tokens_per_second']:,.0f}",
        "skipped updates": f"{last.get('skipped', 0):,}",
    }
    if history.evaluations:
        rows["held-out loss"] = f"{history.evaluations[-1]['eval_loss']:.3f}"
    return "<table>" + "".join(f"<tr><th>{k}</th><td>{v}</td></tr>" for k, v in rows.items()) + "</table>"


def _number(value: float | None) -> str:
    """Three digits; a dash where no update was made."""
    return "–" if value is None else f"{value:.3f}"


def _answers(history: History) -> str:
    if not history.answers:
        return ""
    rows = []
    for answer in history.answers:
        right = "" if answer.get("recall") is None else f" <span class='faint'>({100 * answer['recall']:.0f} % right)</span>"
        question, text = html.escape(answer["prompt"]), html.escape(answer["answer"])
        rows.append(f"<p><b class='q'>{question}</b>{right}<br>{text}</p>")
    return "<h2>Asked after training</h2>" + "".join(rows)


def _recall(history: History) -> str:
    if not history.recall:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='n'>{100 * entry['recall']:.1f} %</td>"
        f"<td class='n'>{entry['records']}</td></tr>"
        for name, entry in history.recall["sources"].items()
    )
    return f"<h2>Recall per source</h2><table><tr><th>source</th><th>recall</th><th>records</th></tr>{rows}</table>"
