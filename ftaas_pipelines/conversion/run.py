"""One conversion from its inputs to files and scores: made, opened again, asked, held against the adapter."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.conversion import comparison
from ftaas_pipelines.conversion.comparison import Question, Said
from ftaas_pipelines.conversion.inputs import ConvertInputs
from ftaas_pipelines.conversion.targets import configuration, precision_of
from ftaas_pipelines.inference import bases, process
from ftaas_pipelines.store import Artifact

if TYPE_CHECKING:
    from ftaas_pipelines.inference.decoding import Model

Progress = Callable[[float, str], None]
ADAPTER, CONVERTED = "adapter", "converted"


@dataclass(frozen=True)
class Materials:
    """Where the inputs of a conversion lie.

    Attributes:
        base: folder of the base model; None where the adapter is a whole model.
        splits: folder of the splits the adapter was trained on.
        scratch: a folder for what is not kept.
    """

    adapter: Artifact
    base: Path | None
    splits: Path
    scratch: Path


@dataclass(frozen=True)
class Converted:
    """What came out.

    Attributes:
        answers: of each question: record id, reference, and what both answered.
        scores: see `comparison.compare`; with `bytes` on disk of adapter, base and conversion.
        sparsity: share of zeros in the linear layers, of a pruned model.
        tokens_per_second: of the adapter and of the conversion, on this machine.
    """

    answers: list[dict[str, str]]
    scores: dict[str, Any]
    sparsity: float | None
    tokens_per_second: dict[str, float]


def convert(inputs: ConvertInputs, materials: Materials, folder: Path, progress: Progress) -> Converted:
    """Write the conversion into a folder, and hold it against the adapter.

    Raises:
        InputInvalid: the model does not admit this form.
        Refused: the conversion changes more than `inputs.threshold`.
    """
    process.prepare(inputs.threads)
    import torch
    import transformers

    from ftaas_pipelines.conversion import merging, quantising
    from ftaas_pipelines.inference.decoding import Model

    torch.set_num_threads(inputs.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    quantising.quiet()
    asked = comparison.questions(materials.splits)
    progress(0.05, f"the adapter answers {len(asked)} validation questions")
    home = materials.base or materials.adapter.path
    model = Model(home, {ADAPTER: materials.adapter.path}, threads=inputs.threads)
    was = comparison.ask(model, ADAPTER, asked, inputs.max_new_tokens)
    del model  # two large models need not be in memory together
    progress(0.3, f"writing {inputs.target}")
    sparsity = _write(inputs, materials, merging.source(materials.adapter, materials.base), folder)
    progress(0.6, f"{inputs.target} answers {len(asked)} validation questions")
    model = _opened(inputs, folder, home)
    said = comparison.ask(model, CONVERTED, asked, inputs.max_new_tokens)
    scores = comparison.compare(asked, was, said, inputs.primary)
    comparison.require(scores, inputs.threshold, asked, was, said)
    scores["bytes"] = {
        ADAPTER: sum(file["bytes"] for file in materials.adapter.manifest["files"].values()),
        "base": _bytes(bases.files(materials.base)) if materials.base else 0,
        CONVERTED: _bytes(folder.rglob("*")),
    }
    speed = {ADAPTER: was.tokens_per_second, CONVERTED: said.tokens_per_second}
    return Converted(
        _answers(asked, was, said),
        scores,
        sparsity,
        {name: round(value, 1) for name, value in speed.items()},
    )


def _answers(asked: Sequence[Question], was: Said, said: Said) -> list[dict[str, str]]:
    return [
        {"record_id": q.record_id, "reference": q.reference, ADAPTER: a, CONVERTED: b}
        for q, a, b in zip(asked, was.texts, said.texts, strict=True)
    ]


def _write(inputs: ConvertInputs, materials: Materials, source: Path, folder: Path) -> float | None:
    """Write what is asked for; returns the sparsity reached, of a pruned model."""
    from ftaas_pipelines.conversion import gguf_file, merging, onnx_graph, pruning, quantising

    adapter, target = materials.adapter, inputs.target
    if (
        target == "merged"
        and source == adapter.path
        and inputs.precision == precision_of(configuration(source))
    ):
        merging.copy(adapter, folder)
        return None
    model = merging.whole(adapter, materials.base)
    if target == "gguf":
        gguf_file.write(model, source, folder, inputs.precision, f"ftaas adapter {adapter.digest[:12]}")
    elif target == "onnx":
        onnx_graph.write(model, source, folder, inputs.precision)
    elif target in ("int8", "int4"):
        whole = materials.scratch / "whole"
        merging.write(model, whole, source, "fp32")
        del model
        quantising.write(whole, folder, target, inputs.precision)
    else:
        sparsity = pruning.prune(model, inputs.sparsity) if target == "pruned" else None
        merging.write(model, folder, source, inputs.precision)
        return sparsity
    return None


def _opened(inputs: ConvertInputs, folder: Path, home: Path) -> "Model":
    """The engine with the conversion in it, read from its files alone."""
    from ftaas_pipelines.inference.decoding import Model

    model = Model(home, threads=inputs.threads)
    if inputs.target == "gguf":
        from ftaas_pipelines.conversion import gguf_file

        model.hold(CONVERTED, gguf_file.load(folder))
    elif inputs.target == "onnx":
        from ftaas_pipelines.conversion import onnx_model

        model.hold(CONVERTED, onnx_model.load(folder, inputs.threads))
    else:
        model.add(CONVERTED, folder)
    return model


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())
