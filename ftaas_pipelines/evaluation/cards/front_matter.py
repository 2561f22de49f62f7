"""The YAML block at the top of a model card: what the Hugging Face Hub reads."""

import re
from typing import Any

from ftaas_pipelines.evaluation import wording
from ftaas_pipelines.evaluation.cards.facts import Model
from ftaas_pipelines.store import short

_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0", "openrail", "gemma", "llama2", "llama3", "llama3.1",
    "llama3.2", "llama3.3",
)  # fmt: skip
"""Those identifiers of the Hub that base models mostly have; any other licence is `other`, with its name."""


def front_matter(model: Model) -> str:
    """The YAML block that the Hugging Face Hub reads."""
    from huggingface_hub import ModelCardData

    project, made = model.project, model.adapter.content
    licence = project.base_model.licence.strip()
    known = licence.lower() if licence.lower() in _LICENCES else "other" if licence else "unknown"
    spoken = sorted(model.data.artifact.content.get("languages") or {})
    data = ModelCardData(
        base_model=project.base_model.id,
        datasets=_datasets(model),
        language=[code for code in spoken if re.fullmatch(r"[a-z]{2}", code)] or None,
        library_name={"lora": "peft", "full": "transformers"}.get(made["adapter"]),
        license=known,
        license_name=licence if known == "other" else None,
        pipeline_tag=_pipeline(model),
        tags=["ftaas", project.task, made["method"], made["adapter"]],
        model_name=project.name,
        eval_results=_results(model) or None,
    )
    return data.to_yaml().rstrip("\n")


def _pipeline(model: Model) -> str:
    """The Hub's word for what the adapter does."""
    made = model.adapter.content
    if made["method"] == "classification":
        return "text-classification"
    of_family = {"seq2seq": "text2text-generation", "vision": "image-text-to-text"}
    return of_family.get(made["family"], "text-generation")


def _datasets(model: Model) -> list[str]:
    """Hub ids of the sources that have one; the rest goes by project and digest."""
    declared = {s.name: s for s in model.project.dataset.sources}
    used = [declared[s["name"]] for s in model.data.version.sources if s["name"] in declared]
    on_hub = sorted(
        {s.huggingface.id for s in used if s.huggingface and not s.huggingface.id.startswith(".")}
    )
    own = f"{model.project.name}-{short(model.data.artifact.digest)}"
    return on_hub if on_hub and len(on_hub) == len(used) else [*on_hub, own]


def _results(model: Model) -> list[Any]:
    from huggingface_hub import EvalResult

    if model.scores is None:
        return []
    return [
        EvalResult(
            task_type=_pipeline(model),
            dataset_type=f"{model.project.name}-{short(model.splits.digest)}",
            dataset_name=f"{model.project.name} {name}",
            dataset_split=name,
            metric_type=metric,
            metric_value=interval["value"],
            metric_name=wording.METRIC_NAMES[metric],
        )
        for name, one in model.scores["sets"].items()
        for metric, interval in one["systems"]["candidate"]["overall"].items()
    ]
