"""`ftaas project`: the use cases, one folder each."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.text import Text

from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit, say, table
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem, raise_all
from ftaas_pipelines.projects import catalog, scaffold
from ftaas_pipelines.projects import policy as policies
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project

app = typer.Typer()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Small letters, digits and _.")],
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Data: CSV, JSONL, JSON, Parquet, Arrow, or text; also .gz and .zst.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a project folder with a commented project.yaml; format and columns are guessed from FILE."""
    chosen = settings.load()
    policy = policies.load(chosen.policy)
    folder = scaffold.check_name(name, chosen.projects)
    rows: list[dict[str, Any]] = []
    if from_:
        guess, rows = _look_at(from_)
        file, source = _plain(from_.name), from_
    else:
        guess, file, source = scaffold.Guess(), "rows.jsonl", scaffold.example_data()
    who = scaffold.people(policy, "low", chosen.who)
    scaffold.write(chosen.projects, policy, name, scaffold.render(name, guess, who, file), {file: source})
    document = {
        "project": name,
        "folder": str(folder),
        "guessed": {
            "format": guess.format,
            "columns": dict(guess.columns),
            "task": guess.task,
            "records": guess.records,
        },
        "rows": rows,
    }

    def render(screen: Console) -> None:
        screen.print(f"{folder / catalog.FILE} is written.")
        if from_:
            mapped = "".join(f", {ours} is '{theirs}'" for ours, theirs in guess.columns.items())
            screen.print(
                f"Guessed from the first {guess.records} rows: {guess.format}{mapped}; task {guess.task}.\n"
            )
            screen.print(table(list(rows[0]), [list(row.values()) for row in rows]))
        else:
            screen.print(f"Put your rows into {folder / 'data' / file}: two example rows stand there.")
        screen.print(f"\nNext: read it, say what it is for, then `ftaas run {name}`.")

    emit(as_json, document, render)


def _look_at(path: Path) -> tuple[scaffold.Guess, list[dict[str, Any]]]:
    """What a data file seems to be by its first 200 rows, and three of them.

    Raises:
        InputInvalid: it cannot be read, or its columns fit no format.
    """
    from ftaas_pipelines.data.raw import readers
    from ftaas_pipelines.data.rows import formats

    rows = readers.look(path)
    readers.raise_all(rows.problems)
    layout = formats.resolve(rows.columns, path, None, {}, rows.rows)
    answer = layout.name(formats.FORMATS[layout.format].required[-1])
    labels = len({str(row.value.get(answer)) for row in rows.rows})
    guess = scaffold.Guess(layout.format, layout.columns, len(rows.rows), labels)
    return guess, [{name: _plain_cell(row.value.get(name)) for name in rows.columns} for row in rows.rows[:3]]


def _plain_cell(value: Any) -> Any:
    """A cell as JSON says it; of what JSON cannot hold, kind and size."""
    from ftaas_pipelines.data.rows import cells

    try:
        return cells.plain(value, "")
    except cells.RowFault:
        return cells.seen(value)


def _plain(name: str) -> str:
    """A file name without what needs quoting anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".") or "rows"


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the projects, the broken ones too."""
    chosen = settings.load()
    rows: list[dict[str, Any]] = []
    for path, found in catalog.read_all(chosen.projects, chosen.policy).items():
        if isinstance(found, Loaded):
            project = found.project
            rows.append(
                {
                    "name": project.name,
                    "title": project.title,
                    "task": project.task,
                    "base": project.base_model.id,
                    "recipes": [r.name for r in project.recipes],
                    "tier": project.risk_tier,
                    "folder": str(path.parent),
                    "problems": [],
                }
            )
        else:
            problems = [p.as_dict() for p in found]
            rows.append({"name": path.parent.name, "folder": str(path.parent), "problems": problems})
    lines = [
        (
            row["name"],
            row.get("title"),
            row.get("task"),
            row.get("base"),
            ", ".join(row.get("recipes", [])),
            row.get("tier"),
            row["folder"],
            Text(f"{len(row['problems'])} problems", "bold red") if row["problems"] else "",
        )
        for row in rows
    ]
    columns = ("name", "title", "task", "base model", "recipes", "tier", "folder", "")

    def render(screen: Console) -> None:
        screen.print(table(columns, lines) if lines else f"no project under {chosen.projects}")
        if any(row["problems"] for row in rows):
            say("`ftaas project validate` says what is wrong")

    emit(as_json, {"projects": rows}, render)


@app.command()
def show(name: Annotated[str, typer.Argument()], as_json: Json = False) -> None:
    """Show a project with every default written out, and what the platform policy asks of it."""
    chosen = settings.load()
    policy = policies.load(chosen.policy)
    loaded = catalog.load_one(chosen.projects, chosen.policy, name)
    document = {
        "folder": str(loaded.folder),
        "project": loaded.project.model_dump(mode="json"),
        "policy": {
            "reviews": policy.reviews(loaded.project),
            "approvals": {
                e: policy.approvals(loaded.project, e) for e in loaded.project.serving.environments
            },
            "thresholds": policy.thresholds(loaded.project),
        },
    }

    def render(screen: Console) -> None:
        screen.print(f"# {loaded.folder / catalog.FILE}, every default written out")
        screen.print(_yaml(document["project"]), end="")
        screen.print("\n# What the platform policy asks of it")
        screen.print(_yaml(document["policy"]), end="")

    emit(as_json, document, render)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


@app.command()
def validate(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Default: all.")] = None,
    as_json: Json = False,
) -> None:
    """Check projects, their base models and the platform policy; every error of every file at once."""
    from ftaas_pipelines.training import fitness

    chosen = settings.load()
    if names:
        good: list[Loaded] = []
        problems: list[Problem] = []
        for name in names:
            try:
                good.append(catalog.load_one(chosen.projects, chosen.policy, name))
            except FtaasError as error:
                problems += error.problems
    else:
        good, problems = catalog.load_all(chosen.projects, chosen.policy)
        names = [loaded.name for loaded in good]
    policy = policies.load(chosen.policy)
    problems += [problem for loaded in good for problem in fitness.of_project(loaded, policy)]
    raise_all(list(dict.fromkeys(problems)))
    text = f"valid: {', '.join(names)}" if names else f"no project under {chosen.projects}"
    emit(as_json, {"ok": True, "projects": names}, lambda screen: screen.print(text))


@app.command()
def schema(
    policy: Annotated[bool, typer.Option("--policy", help="That of the platform policy.")] = False,
    as_json: Json = False,
) -> None:
    """Print the JSON schema of project.yaml: every key, its default and its unit."""
    emit(True, (PlatformPolicy if policy else Project).model_json_schema(), lambda _: None)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A LLaMA-Factory or Axolotl YAML.")],
    name: Annotated[str, typer.Option(help="The project's name; default: the file's.")] = "",
    as_json: Json = False,
) -> None:
    """Make a project of a LLaMA-Factory or Axolotl file; says what could not be taken over."""
    from ftaas_pipelines.projects import importing

    chosen = settings.load()
    policy = policies.load(chosen.policy)
    name = name or importing.project_name(file)
    folder = scaffold.check_name(name, chosen.projects)
    found = importing.convert(file)
    if not found.sources:
        raise InputInvalid("names no data", str(file), do="add its data set, or use `ftaas project new`")
    given = [data.file for data in found.sources if data.file]
    paths = {file: f"data/{_plain(Path(file).name)}" for file in given}
    data = {_plain(Path(file).name): Path(file) for file in given if Path(file).is_file()}
    text = importing.render(found, name, scaffold.people(policy, "low", chosen.who), paths)
    missing = scaffold.write(chosen.projects, policy, name, text, data, data_may_follow=True)
    document = {
        "project": name,
        "folder": str(folder),
        "tool": found.tool,
        "taken": found.taken,
        "left_out": found.left_out,
        "missing": [p.as_dict() for p in missing],
    }

    def render(screen: Console) -> None:
        screen.print(f"{folder / catalog.FILE} is written, from {found.tool}: {len(found.taken)} settings.")
        if found.left_out:
            screen.print(f"\nNot taken over ({len(found.left_out)}; they stand in the file as comments):")
            rows = [(x["key"], x["value"], x["why"]) for x in found.left_out]
            screen.print(table(("key", "value", "why"), rows))
        for problem in missing:
            screen.print(f"\nto do  {problem}")

    emit(as_json, document, render)
