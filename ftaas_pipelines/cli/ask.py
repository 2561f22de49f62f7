"""`ftaas ask`: one question to a running deployment."""

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from assets.line import open_line
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.store import short


def ask(
    name: Annotated[str, typer.Argument(help="The project's name.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    env: Annotated[str, typer.Option(help="staging or production.")] = "production",
    as_json: output.Json = False,
) -> None:
    """Ask a deployment a question."""
    from ftaas_pipelines.serving import asking

    settings = configuration.load()
    system = open_line(name, settings).project.dataset.system or None
    answer = asking.ask(settings, env, name, question, system=system)

    def show(screen: Console) -> None:
        screen.print(Text(answer["answer"]))
        used = answer["usage"]
        screen.print(
            Text(
                f"{answer['response_id']}  adapter {short(answer['adapter_digest'])}  "
                f"{used['prompt_tokens']}+{used['completion_tokens']} tokens  {answer['latency_ms']:.0f} ms",
                style="dim",
            )
        )

    output.emit(as_json, answer, show)
