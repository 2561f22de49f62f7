"""Build a real Bento of one adapter, and make it content only: the same inputs give the same bytes."""

import os
import shutil
from pathlib import Path
from typing import Any, cast

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.serving.runtime import RuntimeState, ServedRelease
from ftaas_pipelines.store import MANIFEST, Artifact, short

# What an image needs beside BentoML itself, which adds its own version.
PACKAGES = [
    "torch>=2.13",
    "transformers>=5.23",
    "peft>=0.21",
    "pillow>=12",
    "llguidance>=1.3",
    "fastapi>=0.115",
    "prometheus-client>=0.22",
    "psutil>=7",
]


def build(inputs: BentoInputs, adapter: Artifact, version: str, work: Path, target: Path) -> str:
    """Build a Bento into `target`: the runtime's source, the adapter's files, the base by digest.

    Args:
        adapter: the adapter artifact that `inputs` names.
        version: the version part of the Bento's tag.
        work: an empty folder for what BentoML writes on its way.
        target: a folder that does not exist yet.

    Returns:
        The tag, `project:version`.

    Raises:
        InputInvalid: the runtime's source is not the one that `inputs` names.
    """
    if runtime.digest() != inputs.runtime:
        raise InputInvalid(
            "the serving source changed since this build was planned",
            "runtime",
            f"{short(runtime.digest())} instead of {short(inputs.runtime)}",
            "run `ftaas run` again",
        )
    context = work / "context"
    for name in runtime.files():
        (context / "ftaas_pipelines" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(runtime.PACKAGE / name, context / "ftaas_pipelines" / name)
    built = _build(inputs, version, context, work / "bentoml")
    shutil.move(built, target)
    # Added here, not through the build context: BentoML would copy a full model twice more.
    _copy_adapter(adapter, target / "src" / "adapter")
    state = RuntimeState("", inputs.runtime, [_alone(inputs)], inputs.threads, merge=True)
    (target / "src" / runtime.STANDALONE_STATE).write_text(state.as_json(), encoding="utf-8")
    _content_only(target / "bento.yaml")
    return f"{inputs.project}:{version}"


def _build(inputs: BentoInputs, version: str, context: Path, home: Path) -> Path:
    # Read once, when bentoml is imported: nothing may go to the user's home or to the network.
    os.environ.update(BENTOML_HOME=str(home), BENTOML_DO_NOT_TRACK="True")
    from bentoml import bentos

    built = bentos.build(
        "ftaas_pipelines.serving.service:Runtime",
        name=inputs.project,
        version=version,
        build_ctx=str(context),
        include=["ftaas_pipelines/**"],
        python=cast(Any, {"packages": PACKAGES, "lock_packages": False}),
        labels={
            "project": inputs.project,
            "adapter": short(inputs.adapter),
            "base": short(inputs.base),
            "runtime": short(inputs.runtime),
        },
        description=_readme(inputs),
    )
    return Path(built.path)


def _readme(inputs: BentoInputs) -> str:
    return (
        f"# {inputs.project}\n\nAdapter `{inputs.adapter}` on base `{inputs.base}` ({inputs.family}), "
        f"served by runtime `{inputs.runtime}`.\n\n"
        "The adapter lies in `src/adapter`. The base model is named by digest; to serve this Bento alone, "
        "set `FTAAS_BASE_PATH` to its folder and run `PYTHONDONTWRITEBYTECODE=1 bentoml serve .` "
        "(byte code beside the source would change this artifact).\n"
    )


def _copy_adapter(adapter: Artifact, target: Path) -> None:
    for name in [*adapter.manifest["files"], MANIFEST]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapter.path / name, target / name)


def _alone(inputs: BentoInputs) -> ServedRelease:
    return ServedRelease(
        project=inputs.project,
        release="",
        adapter=inputs.adapter,
        adapter_path="adapter",
        base=inputs.base,
        base_path="",
        family=inputs.family,
        max_new_tokens=inputs.max_new_tokens,
    )


def _content_only(file: Path) -> None:
    """Take out when the Bento was built; BentoML reads a Bento without it just as well."""
    import yaml

    content = yaml.safe_load(file.read_text("utf-8"))
    content.pop("creation_time", None)
    file.write_text(yaml.safe_dump(content, sort_keys=True), encoding="utf-8")
