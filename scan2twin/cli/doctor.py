"""`scan2twin doctor`: what works here."""

from dataclasses import asdict

import typer
from rich.table import Table

from scan2twin.cli.options import JsonOption, StoreOption, console, print_json
from scan2twin.doctor import examine, healthy


def doctor(store: StoreOption = None, json_: JsonOption = False) -> None:
    """Say what works on this machine; exit code 1 if something required does not."""
    checks = examine(store)
    if json_:
        print_json([asdict(check) for check in checks])
    else:
        table = Table("", "what", "found", box=None)
        for check in checks:
            mark = "[green]✓[/]" if check.ok else "[red]✗[/]" if check.required else "[yellow]–[/]"
            table.add_row(mark, check.name, check.detail)
        console.print(table)
    if not healthy(checks):
        raise typer.Exit(1)
