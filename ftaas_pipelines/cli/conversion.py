"""`ftaas model convert` and `ftaas model push`: what becomes of an adapter afterwards."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import errors
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import artifacts, output
from ftaas_pipelines.conversion import targets
from ftaas_pipelines.conversion.inputs import ConvertInputs
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem, Refused
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Evaluation
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Run, Spec
from ftaas_pipelines.store import Artifact, Store, short

PUSHED = "push"
"""Ledger entry of an artifact that was given to a Hub."""
_BY_EXIT_CODE = {2: errors.InputInvalid, 3: errors.Refused, 78: errors.SpecUnusable, 130: errors.Interrupted}

Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="A digest, or its first 6 characters or more.")]


def convert(
    digest: Digest,
    to: Annotated[str, typer.Option(help=" | ".join(targets.FORMS))],
    precision: Annotated[
        str | None, typer.Option(help="Of the weights: fp32, bf16, fp16; q8_0 for gguf, int8 for onnx.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of weights that pruned sets to zero (0.3).")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of changed answers, and drop of the metric.")
    ] = 0.02,
    base: Annotated[Path | None, typer.Option(help="Folder of the base model.")] = None,
    as_json: output.Json = False,
) -> None:
    """Give an adapter another form and hold that against it; refused where answers change too much."""
    settings, store = configuration.load(), artifacts.store()
    adapter = artifacts.get(digest, ("adapter",), "model convert")
    loaded = _project(adapter, settings)
    folder = _base(adapter, loaded, base, settings)
    config = targets.configuration(folder or adapter.path)
    target, weights, share = targets.resolve(to, precision, sparsity, config)
    targets.check(target, adapter.content["family"], adapter.content["method"], config)
    evaluation = loaded.project.evaluation if loaded else Evaluation()
    inputs = ConvertInputs(
        adapter=adapter.digest,
        base=adapter.content["base"],
        family=adapter.content["family"],
        splits=adapter.content["splits"],
        target=target,
        precision=weights,
        sparsity=share,
        threshold=threshold,
        primary=evaluation.primary,
        max_new_tokens=evaluation.max_new_tokens,
        threads=settings.threads,
    )
    spec = Spec(
        stage="convert",
        project=str(adapter.attestation.get("spec", {}).get("project", "")),
        asset=f"conversion_{target}",
        inputs=inputs.model_dump(mode="json"),
        run=Run(
            home=settings.home.resolve(),
            store=store.root,
            ledger=settings.ledger,
            ledger_head=settings.ledger_head,
            actor=settings.who,
            base_path=folder,
        ),
    )
    made = _make(spec, store, settings)
    output.emit(as_json, _document(made), lambda screen: _show(screen, made))


def push(
    digest: Digest,
    to: Annotated[str, typer.Option(metavar="ORG/NAME", help="The repository; made where it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make it a private one.")] = False,
    token: Annotated[str, typer.Option(help="env:VARIABLE that holds the token.")] = "env:HF_TOKEN",
    as_json: output.Json = False,
) -> None:
    """Upload an adapter or a conversion to a Hugging Face Hub (HF_ENDPOINT); the ledger remembers who did."""
    from ftaas_pipelines.conversion import hub

    settings = configuration.load()
    artifact = artifacts.get(digest, ("adapter", "conversion"), "model push")
    adapter = artifact if artifact.kind == "adapter" else artifacts.store().get(artifact.content["adapter"])
    loaded = _project(adapter, settings)
    sensitivity = loaded.project.data_sensitivity if loaded else "unknown"
    if sensitivity != "public" and not private:
        raise Refused(
            f"what was trained on {sensitivity} data is not given to a public repository",
            f"{artifact.kind} {short(artifact.digest)}",
            do="add --private",
        )
    ledger = open_ledger(settings, policy_version(load_policy(settings.policy)))
    project = str(adapter.attestation.get("spec", {}).get("project", ""))
    body: dict[str, Any] = {"to": to, "private": private}

    def remember(endpoint: str) -> None:
        body["endpoint"] = endpoint
        ledger.append(PUSHED, artifact.digest, body, project=project, actor=settings.who)

    body["commit"] = hub.push(artifact, to, token, private=private, before=remember)
    document = {"digest": artifact.digest, "kind": artifact.kind, **body}
    output.emit(
        as_json, document, lambda screen: screen.print(f"{short(artifact.digest)} is at {body['commit']}")
    )


def _project(adapter: Artifact, settings: Settings) -> Loaded | None:
    """The project an adapter was trained for, where it is still there."""
    name = adapter.attestation.get("spec", {}).get("project", "")
    try:
        return catalog.load_one(settings.projects, settings.policy, name)
    except FtaasError:
        return None


def _base(adapter: Artifact, loaded: Loaded | None, given: Path | None, settings: Settings) -> Path | None:
    """The folder of an adapter's base model, wherever its very bytes are found; None for a whole model.

    Raises:
        InputInvalid: it is nowhere, or the folder that was named holds another model.
    """
    wanted = adapter.content["base"]
    if given:
        if bases.digest(given) != wanted:
            raise InputInvalid(
                "the folder holds another base model than the adapter's",
                "--base",
                f"{short(bases.digest(given))}, not {short(wanted)}",
                "name the folder that it was trained on",
            )
        return given.resolve()
    if adapter.content["adapter"] == "full":
        return None
    named = [(b["id"], b["revision"]) for b in adapter.attestation.get("bases", [])]
    if loaded:
        named.append((loaded.project.base_model.id, loaded.project.base_model.revision))
    named += [(id, "main") for id in bases.embedded()]
    for id, revision in named:
        try:
            folder = bases.resolve(id, revision, loaded.folder if loaded else settings.projects)
            if bases.digest(folder) == wanted:
                return folder
        except FtaasError:  # said below, with what to do
            continue
    raise InputInvalid(
        "its base model is not at hand", short(adapter.digest), short(wanted), "name its folder with --base"
    )


def _make(spec: Spec, store: Store, settings: Settings) -> Artifact:
    """Run the stage in a process of its own, under a lease; what is made already is adopted."""
    with (
        store.lease(f"{spec.asset}-{spec.input_digest}", settings.lease_wait_s) as lease,
        tempfile.TemporaryDirectory(prefix="ftaas-") as folder,
    ):
        found = store.find(spec.input_digest)
        if found:
            return found
        result = Path(folder) / "result.json"
        (Path(folder) / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            f"ftaas_pipelines.stages.{spec.stage}",
            "--spec",
            f"{folder}/spec.json",
            "--out",
            str(result),
        ]
        code, last = _run(command, spec, settings, lease)
        said: dict[str, Any] = json.loads(result.read_text("utf-8")) if result.is_file() else {}
        if code == 0:
            return store.get(said["digest"])
        if "problems" in said:
            raise _BY_EXIT_CODE.get(code, FtaasError)([Problem(**p) for p in said["problems"]])
        raise FtaasError("the conversion was ended from outside", spec.asset, f"exit {code}", last)


def _run(command: list[str], spec: Spec, settings: Settings, lease: int) -> tuple[int, str]:
    """Run the stage; its progress goes to stderr. Returns its exit code and the last line it wrote."""
    threads = str(spec.inputs["threads"])
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("DAGSTER_PIPES")},
        **settings.environ(),
        "FTAAS_LAUNCHER_PID": str(os.getpid()),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TQDM_DISABLE": "1",
    }
    last = ""
    with subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        pass_fds=(lease,),
        start_new_session=True,
    ) as child:
        assert child.stderr is not None
        try:
            for line in child.stderr:
                last = line.strip() or last
                if "%" in line[:8]:
                    output.say(line.rstrip())
        finally:
            if child.poll() is None and sys.exc_info()[0]:
                child.send_signal(signal.SIGTERM)
    return child.returncode, last


def _document(made: Artifact) -> dict[str, Any]:
    content = made.content
    return {
        "conversion": made.digest,
        "adapter": content["adapter"],
        "target": content["target"],
        "options": content["options"],
        "experimental": content["experiment"],
        "folder": str(made.path),
        "scores": content["scores"],
        "tokens_per_second": made.attestation["tokens_per_second"],
    }


def _show(screen: Console, made: Artifact) -> None:
    content = made.content
    scores, speed = content["scores"], made.attestation["tokens_per_second"]
    primary, size = scores["primary"], scores["bytes"]
    marked = "experimental " if content["experiment"] else ""
    screen.print(f"{marked}conversion {short(made.digest)} ({content['target']}): {made.path}")
    rows = [
        (
            name,
            f"{scores[name][primary]:.4f}",
            f"{scores[name]['loss']:.4f}",
            f"{mb / 1e6:.2f}",
            f"{speed[name]:.0f}",
        )
        for name, mb in (("adapter", size["adapter"] + size["base"]), ("converted", size["converted"]))
    ]
    screen.print(output.table(("", primary, "loss", "MB with its base", "tokens/s"), rows))
    equal = scores["records"] - scores["changed"]
    screen.print(f"{equal} of {scores['records']} validation answers are the same")
