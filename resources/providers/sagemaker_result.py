"""What a SageMaker job packed, read with suspicion, as the files and facts of an adapter."""

import json
import shutil
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.store import ATTESTATION, MANIFEST, digest_of, file_digest, short
from resources.providers.job import Order
from resources.providers.unpacking import unpack

_WEIGHTS = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_ATTESTED = (
    "libraries",
    "cpu",
    "cpu_instructions",
    "threads",
    "records",
    "truncated_records",
    "resumed_from",
    "last",
)


class Result:
    """The unpacked files. `figures` and `attested` are what the program says of its own making."""

    def __init__(self, packed: Path, most_bytes: int, folder: Path):
        self._folder = folder
        self.left_out = unpack(packed, folder, most_bytes)
        self.attested: dict[str, Any] = {}
        self.figures: list[dict[str, Any]] = []

    def ours(self, order: Order) -> dict[str, Any]:
        """The content of an adapter that this platform's program made, each file held against its manifest.

        Raises:
            FtaasError: it is none, or its bytes are not what its manifest says.
        """
        manifest = self._read(MANIFEST)
        attestation = self._read(ATTESTATION)
        if manifest is None or manifest.get("kind") != "adapter":
            raise self._no_adapter(f"no {MANIFEST} of an adapter")
        for name, entry in manifest["files"].items():
            path = self._folder / name
            if not path.is_file() or file_digest(path) != entry["sha256"]:
                raise FtaasError("a file is not what the job's manifest says", f"model.tar.gz/{name}")
        content: dict[str, Any] = manifest["content"]
        if content.get("base") != order.base:
            raise FtaasError("the job trained another base", "model.tar.gz", short(content.get("base")))
        self.attested["container_digest"] = digest_of(manifest)
        self.attested["container"] = {k: v for k, v in (attestation or {}).items() if k in _ATTESTED}
        self._keep({*manifest["files"]})
        # It was handed two of the three splits, under a digest of their own.
        return {**content, "splits": order.splits.digest}

    def of_image(self, order: Order) -> dict[str, Any]:
        """The content of an adapter that an image's own program left: the one PEFT folder in it.

        Raises:
            FtaasError: there is none.
        """
        found = [path.parent for path in self._folder.rglob(_CONFIG) if (path.parent / _WEIGHTS).is_file()]
        found = [p for p in found if "checkpoint-" not in p.relative_to(self._folder).as_posix()]
        if len(found) != 1:
            raise self._no_adapter(f"{len(found)} PEFT folders")
        config = self._read(str((found[0] / _CONFIG).relative_to(self._folder)))
        if config is None or config.get("peft_type") != "LORA":
            raise self._no_adapter(f"peft_type {config.get('peft_type') if config else 'unreadable'}")
        self.attested["base_in_container"] = config.get("base_model_name_or_path")
        config["base_model_name_or_path"] = f"sha256:{order.base}"
        weights, text = found[0] / _WEIGHTS, json.dumps(config, indent=2, sort_keys=True) + "\n"
        weights.replace(self._folder / _WEIGHTS)
        (self._folder / _CONFIG).write_text(text, encoding="utf-8")
        self._keep({_WEIGHTS, _CONFIG})
        return {
            "adapter": "lora",
            "base": order.base,
            "family": str(order.spec.inputs.get("family", "causal")),
        }

    def _keep(self, names: set[str]) -> None:
        """Of what was packed, these files, and what stands beside them in an artifact."""
        figures = self._folder / "beside" / "metrics.jsonl"
        if figures.is_file():
            self.figures = [json.loads(line) for line in figures.read_text("utf-8").splitlines()]
        for path in sorted(self._folder.rglob("*"), reverse=True):
            name = path.relative_to(self._folder).as_posix()
            if path.is_file() and name not in names and not name.startswith("beside/"):
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                shutil.rmtree(path)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self._folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _no_adapter(self, got: str) -> FtaasError:
        there = sorted(p.relative_to(self._folder).as_posix() for p in self._folder.rglob("*") if p.is_file())
        got = f"{got}; there are {', '.join([*there, *self.left_out][:10]) or 'no files'}"
        return FtaasError("the job's result is no adapter", "model.tar.gz", got, "see its log")
