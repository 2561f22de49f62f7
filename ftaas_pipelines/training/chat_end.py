"""Whether a chat template closes an answer: without an end token there, a model never learns to stop."""

import re
from typing import Any

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.training.base_facts import BaseFacts

WITHOUT_ANSWERS = ("pretrain", "classification", "reward")  # methods that teach no answer to end
_QUESTION, _ANSWER = "QUESTION", "ANSWER"


def problems(facts: BaseFacts, family: str, base: str) -> list[Problem]:
    """What is wrong with the template of a base, as it renders a question and its answer.

    A causal base without a template gets the platform's own, which closes its answers; it needs an end token
    only. A vision base needs one that says how a conversation shows an image.

    Args:
        base: id of the base, for the error.
    """
    template = facts.chat_template
    file = (
        "chat_template.jinja" if (facts.folder / "chat_template.jinja").is_file() else "tokenizer_config.json"
    )
    where = str(facts.folder / file)
    if not facts.ends:
        what = "the tokenizer has no end token, so no answer would ever stop"
        return [Problem(what, str(facts.folder / "tokenizer_config.json"), base, "set eos_token there")]
    if template is None:
        what = "the base does not say how a conversation shows an image: it has no chat template"
        do = "put its chat_template.jinja into the folder"
        return [Problem(what, str(facts.folder), base, do)] if family == "vision" else []
    try:
        text = _rendered(template, facts.special_tokens)
    except Exception as error:  # a template is a program: it may raise anything
        first = (str(error).splitlines() or [""])[0]
        what = "the chat template cannot render a question and its answer"
        return [Problem(what, where, f"{type(error).__name__}: {first}", "mend the template")]
    _, answered, after = text.rpartition(_ANSWER)
    if not answered:
        what = "the chat template leaves the answer out"
        return [Problem(what, where, base, "let it write the content of assistant messages")]
    if any(end in after for end in facts.ends):
        return []
    closing = re.search(r"<[^<>\s]+>", after)
    got = f"after an answer it writes {after!r}, the end token is {', '.join(facts.ends)}"
    do = "write {{ eos_token }} after each answer in the template"
    if closing and closing[0] in facts.tokens:
        do += f", or set eos_token to {closing[0]}"
    what = "the chat template has no end token after an answer, so the model would never learn to stop"
    return [Problem(what, where, got, do)]


def _rendered(template: str, special_tokens: dict[str, Any]) -> str:
    """One question and its answer, rendered by what tokenizers themselves render with (a sandbox)."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(question: Any, answer: Any) -> str:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        texts, _ = render_jinja_template([messages], chat_template=template, **special_tokens)
        return texts[0]

    text = render(_QUESTION, _ANSWER)
    if _ANSWER in text and _QUESTION in text:
        return text
    # Templates of vision-language models read lists of parts.
    return render([{"type": "text", "text": _QUESTION}], [{"type": "text", "text": _ANSWER}])
