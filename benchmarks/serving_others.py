"""Servers that `benchmarks.serving` compares the endpoint with, started and ended."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import ROOT, THREADS
from tests.serving_house import free_port


def one_generate_each(folder: Path, base: Path, adapter: Path) -> Any:
    """The same HTTP layer with one `generate` a request (`serving_baseline.py`)."""
    return server(folder, "-m", "benchmarks.serving_baseline", str(base), str(adapter))


def merged(base: Path, adapter: Path, folder: Path) -> Path:
    """The model with its adapter merged: `transformers serve` serves whole models."""
    if not folder.exists():
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        shutil.copytree(base, folder)
        merged.save_pretrained(folder)
    return folder


@contextmanager
def transformers_serve(folder: Path, model: Path) -> Iterator[str]:
    program = "from transformers.cli.transformers import main; main()"
    options = ["serve", str(model), "--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1"]
    with server(folder, "-c", program, *options, port="--port") as url:
        yield url


@contextmanager
def server(folder: Path, *arguments: str, env: dict[str, str] | None = None, port: str = "") -> Iterator[str]:
    """A server of somebody else on a free port; ended behind the block."""
    number = free_port()
    log = (folder / "server.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, *arguments, *([port] if port else []), str(number)],
        env=os.environ | THREADS | (env or {}),
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{number}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                said = Path(log.name).read_text("utf-8")[-2000:]
                raise SystemExit(f"{' '.join(arguments)} does not start:\n{said}")
            time.sleep(0.2)
        yield url
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.terminate()
        process.terminate()
        process.wait(30)
        log.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2, trust_env=False).status_code < 500
    except httpx.HTTPError:
        return False
