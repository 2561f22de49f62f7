"""The rewards of GRPO and RLOO: declarative graders, or a Python function of the project's own.

Every grader gives 0 to 1 for one answer, unless it says otherwise; `metrics.graders` computes them.
A reward is the weighted sum of its graders.
"""

from typing import Annotated, Any, Literal

import regex
from pydantic import Field, field_validator

from ftaas_pipelines.projects.section import Section


class _Grader(Section):
    weight: float = Field(
        default=1.0, allow_inf_nan=False, description="share of this grader in the reward; may be negative"
    )


class ExactMatch(_Grader):
    """1 when the answer is the expected one, up to white space at its ends."""

    kind: Literal["exact_match"]
    ignore_case: bool = False


class Regex(_Grader):
    """1 when the pattern is found in the answer (Python's syntax, the dot matches new lines).

    Searching one answer may take two seconds; a pattern that needs more is an error.
    """

    kind: Literal["regex"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            regex.compile(pattern, regex.DOTALL)
        except regex.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern


class Numeric(_Grader):
    """1 when the answer's number is the expected one: its last number, or the one behind a mark (GSM8K).

    Commas that part thousands and currency signs do not count.
    """

    kind: Literal["numeric"]
    tolerance: float = Field(
        default=1e-6, ge=0, allow_inf_nan=False, description="absolute difference that still counts as equal"
    )
    after: str = Field(
        default="", description="the first number behind the last such mark counts, e.g. '####'; no mark: 0"
    )


class JsonSchema(_Grader):
    """1 when the answer is JSON that fits the schema (JSON Schema 2020-12)."""

    kind: Literal["json_schema"]
    json_schema: dict[str, Any]

    @field_validator("json_schema")
    @classmethod
    def _is_one(cls, schema: dict[str, Any]) -> dict[str, Any]:
        # Here, as it costs 0.2 s to import and few projects have a schema.
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"is no JSON schema: {error.message} at {error.json_path}") from None
        said = repr(schema)  # the first keyword would search with the second's patterns, without a limit
        if "'unevaluatedProperties'" in said and "'patternProperties'" in said:
            raise ValueError("holds unevaluatedProperties beside patternProperties: use additionalProperties")
        return schema


class Similarity(_Grader):
    """How much the answer resembles the expected one, 0 to 1; of long ones, the first 10,000 characters.

    `ratio` compares characters (twice the longest common subsequence over both lengths), the others are
    the scores of evaluation.
    """

    kind: Literal["similarity"]
    measure: Literal["ratio", "token_f1", "rouge_l", "chrf"] = "chrf"


class Python(_Grader):
    """A function of the project's own: `rewards.py:score`, a file beside project.yaml.

    It is called as `score(prompts, answers, expected)`, each a list of texts of one batch, and returns a
    list of numbers, of the texts alone: the same for the same texts, or the adapter cannot be made again.
    The file's digest is part of what the adapter is made from; it imports nothing that lies beside it.
    """

    kind: Literal["python"]
    entry: str = Field(pattern=r"^[\w./-]+\.py:[A-Za-z_]\w*$", description="FILE.py:FUNCTION")


Grader = Annotated[
    ExactMatch | Regex | Numeric | JsonSchema | Similarity | Python, Field(discriminator="kind")
]

# Those that hold an answer against the expected one; a Python function may.
NEEDS_EXPECTED = (ExactMatch, Numeric, Similarity, Python)
