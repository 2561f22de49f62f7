"""`ftaas data`: dataset versions, splits, and their rows."""

import typer

from ftaas_pipelines.cli.data import catalog, exchange, rows, synthesis

app = typer.Typer()
app.command("list")(catalog.list_)
app.command()(catalog.show)
app.command()(rows.rows)
app.command()(exchange.diff)
app.command()(exchange.export)
app.command()(catalog.card)
app.command()(catalog.croissant)
app.command()(synthesis.generate)
app.command()(synthesis.label)
