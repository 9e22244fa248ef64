"""How `huatuo-data unify` prints its forecast and its report."""

from typing import Any

from rich.console import Console
from rich.table import Table

from huatuo_jax.cli.console import print_table


def print_forecast(console: Console, forecast: dict[str, Any]) -> None:
    """Prints what a run will take, and on which assumptions."""
    tokens = f"{forecast['prompt_tokens']:,} prompt and {forecast['output_tokens']:,} output tokens"
    cost = f", cost {forecast['cost']:,.2f}" if forecast["cost"] is not None else ""
    console.print(
        f"forecast: {forecast['passages']:,} passages, {forecast['calls']:,} calls, {tokens}{cost}; "
        f"from {forecast['based_on']}, without second tries"
    )
    if forecast["least_hours"] is not None:
        console.print(f"at the given requests per minute it takes at least {forecast['least_hours']:,} hours")
    if not forecast["within_caps"]:
        console.print("warning: this is more than the caps allow; the run will stop there, and continue under larger ones")


def print_report(console: Console, report: dict[str, Any]) -> None:
    """Prints records and what survives of the passages per source, then rejects and failed requests by reason."""
    table = Table("source", "records", "n-gram recall: mean", "median", "worst tenth", "length", title=report["out"])
    for source, records in report["sources"].items():
        row = report["coverage"][source]
        shares = ("–" if row[key] is None else f"{row[key]:.1%}" for key in ("mean", "median", "p10"))
        table.add_row(source, f"{records:,}", *shares, f"{row['length_ratio']:.2f}×")
    print_table(console, table)
    console.print(f"records {report['records']:,}, rejected {report['rejected']:,}")
    for key, what in (("rejected_passages", "rejected passages"), ("rejected_tries", "rejected texts")):
        if report.get(key):
            console.print(f"{what}: " + ", ".join(f"{name} {count:,}" for name, count in report[key].items()))
    if client := report.get("client"):
        failed = ", ".join(f"{name} {count:,}" for name, count in client["failed_requests"].items())
        console.print(
            f"requests {client['requests']:,}, answers {client['answers']:,}" + (f", failed: {failed}" if failed else "")
        )
