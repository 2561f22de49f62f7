"""What a conversion is made from: exactly what its input digest is taken over."""

from typing import Literal

from ftaas_pipelines.data.inputs import Inputs
from ftaas_pipelines.projects.project import MetricName

CONVERT_CONTRACT = 1

Target = Literal["merged", "gguf", "onnx", "int8", "int4", "pruned"]
Precision = Literal["fp32", "bf16", "fp16", "q8_0", "int8"]


class ConvertInputs(Inputs):
    """An adapter to another form of it (artifact kind `conversion`).

    `base` and `splits` are those the adapter was made from; the form is resolved (`targets.resolve`).
    `threshold` is the largest share of changed answers, and the largest drop of the primary metric (of its
    range), that is let through: it judges what is made and does not make it, so the output digest does not
    know it.
    """

    contract: int = CONVERT_CONTRACT
    adapter: str
    base: str
    family: str
    splits: str
    target: Target
    precision: Precision
    sparsity: float
    threshold: float
    primary: MetricName
    max_new_tokens: int
    threads: int
