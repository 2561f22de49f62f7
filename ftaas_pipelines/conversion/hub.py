"""An adapter or a conversion to a Hugging Face Hub: the files of its identity, a card, and nothing else.

The attestation stays here: it names people and hosts.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.store import MANIFEST, Artifact, short

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

_OPENED = {
    "gguf": "llama-server -m model.gguf --jinja",
    "onnx": 'ORTModelForCausalLM.from_pretrained("{repo}", file_name="model.onnx")',
}


def push(artifact: Artifact, repo: str, token: str, *, private: bool, before: Callable[[str], None]) -> str:
    """Upload an artifact as one commit, into a repository that is made where it is not there.

    Args:
        repo: `ORG/NAME`.
        token: `env:VARIABLE`; its value is never printed.
        private: make the repository private.
        before: called with the Hub's address just before anything is uploaded: killed or not, it is known.

    Returns:
        The address of the commit.

    Raises:
        InputInvalid: the token is not set or not in a variable, or the repository's name is wrong.
        Refused: the artifact is of an experiment, or the repository is public although it is to be private.
        FtaasError: its bytes are not those it was made of, or the Hub does not take them.
    """
    if artifact.content.get("experiment"):
        raise Refused(
            "an experiment is never given away",
            f"{artifact.kind} {short(artifact.digest)}",
            do="train it through the gate: write its settings into project.yaml and run the line",
        )
    if not token.startswith("env:"):
        raise InputInvalid("a token is taken from a variable alone", "--token", do="write env:HF_TOKEN")
    broken = list(artifact.problems())
    if broken:
        raise FtaasError(broken)
    value = secrets.value(token)
    from huggingface_hub import HfApi

    api = HfApi(token=value)
    try:
        return _commit(api, artifact, repo, private, before)
    except (OSError, ValueError, RuntimeError) as error:  # every error of the Hub client is one of these
        wrong = InputInvalid if type(error).__name__ == "HFValidationError" else FtaasError
        raise wrong(
            f"the Hub did not take it ({type(error).__name__}: {secrets.hide(_first_line(error), value)})",
            f"{api.endpoint}/{repo}",
            do=f"check the name, that {token} may write there, and HF_ENDPOINT; nothing is half published",
        ) from None


def _commit(api: "HfApi", artifact: Artifact, repo: str, private: bool, before: Callable[[str], None]) -> str:
    api.create_repo(repo, private=private, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise Refused(
            "the repository is there already, and is public", repo, do="choose another name, or hide it first"
        )
    before(api.endpoint)
    what = artifact.content.get("target", "adapter")
    message = f"{artifact.kind} {short(artifact.digest)} ({what})"
    return str(api.create_commit(repo, _operations(artifact, repo), commit_message=message).commit_url)


def _operations(artifact: Artifact, repo: str) -> "Sequence[CommitOperationAdd]":
    from huggingface_hub import CommitOperationAdd

    names = [*sorted(artifact.manifest["files"]), MANIFEST]
    added = [CommitOperationAdd(name, artifact.file(name)) for name in names if name != "README.md"]
    return [CommitOperationAdd("README.md", card(artifact, repo).encode()), *added]


def card(artifact: Artifact, repo: str) -> str:
    """The README of the repository: what it is, how it is opened, what it was held against."""
    content = artifact.content
    target, base = content.get("target"), f"sha256:{content['base']}"
    whole = bool(target) or content["adapter"] == "full"
    library = {"gguf": "gguf", "onnx": "onnx"}.get(target or "", "transformers" if whole else "peft")
    auto = "AutoModelForSeq2SeqLM" if content["family"] == "seq2seq" else "AutoModelForCausalLM"
    opened = _OPENED.get(
        target or "",
        f'{auto}.from_pretrained("{repo}")' if whole else f'PeftModel.from_pretrained(base, "{repo}")',
    )
    lines = [
        f"---\nlibrary_name: {library}\ntags: [ftaas, {target or content['adapter']}]\n---\n",
        f"# {repo.rpartition('/')[2]}\n",
        f"Artifact `{artifact.digest}` of kind {artifact.kind}; the sha256 of every file is in {MANIFEST}.\n",
        f"- base model: `{base}`\n- splits it was trained on: `{content['splits']}`",
        *([f"- adapter it was made of: `{content['adapter']}`\n- form: {target}"] if target else []),
        f"\n```\n{opened.format(repo=repo)}\n```\n",
        *(_held(content["scores"]) if target else []),
    ]
    return "\n".join(lines)


def _held(scores: dict[str, Any]) -> list[str]:
    primary, rows = scores["primary"], ("adapter", "converted")
    return [
        f"Against the adapter, on {scores['records']} validation records: "
        f"{scores['changed']} answers differ.\n",
        f"| | {primary} | loss |\n|---|---|---|",
        *(f"| {row} | {scores[row][primary]:g} | {scores[row]['loss']:g} |" for row in rows),
        "",
    ]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
