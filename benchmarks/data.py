"""The data plane against a plain pandas script and `datasets.map`: rows per CPU second, and memory.

    python -m benchmarks.data --rows 1000000

Writes its own input: JSONL in four formats, about 500 bytes a row, 10% exact and 10% near-duplicates,
some text outside ASCII, some control characters, personal data in 1%. Each system is a process of its
own; CPU seconds are of that process and all below it, memory is the greatest sum of resident sets.

`part` is parse, clean and exact de-duplication: what all do. It ends where it is known which rows stay;
what they hold is written afterwards, uncounted, and must be equal row by row. `whole` is the platform's
line: near-duplicates, personal data, validation, splits, all of it written.

`pandas` is the plain script: read_json, one Python function on every text (the same that `datasets.map`
calls), drop_duplicates. `pandas_vectorised` says the same with `.str` methods on Arrow strings; it stands
beside for information: most people write the first, some the second.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from pathlib import Path
from typing import Any

import psutil

FORMATS = ("alpaca", "prompt_completion", "text_target", "messages")
SYSTEMS = ("ftaas_part", "pandas", "datasets", "pandas_vectorised", "ftaas_whole")
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"


def generate(folder: Path, rows: int, seed: int = 7) -> None:
    """`rows` rows in four files, the same for the same seed."""
    dice = random.Random(seed)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = ["".join(dice.choices(syllables, k=dice.randint(1, 4))) for _ in range(30_000)]
    out = {name: (folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in FORMATS}
    recent: list[tuple[str, str]] = []
    for i in range(rows):
        luck = dice.random()
        if luck < 0.2 and len(recent) > 100:
            prompt, answer = recent[dice.randrange(len(recent))]
            if luck < 0.1:
                changed = prompt.split(" ")
                changed[dice.randrange(len(changed))] = dice.choice(words)
                prompt = " ".join(changed)
        else:
            prompt = " ".join(dice.choices(words, k=dice.randint(30, 50))).capitalize() + "?"
            answer = " ".join(dice.choices(words, k=dice.randint(20, 40))).capitalize() + "."
            if luck > 0.97:
                prompt = prompt.replace("a", "a\u0301", 2) + " \u00fcber na\u00efve caf\u00e9"
            elif luck > 0.95:
                answer = "  " + answer.replace(" ", "\x07 ", 1) + "\r\n"
            elif luck > 0.94:
                answer += f" Write to {dice.choice(words)}@example.com or call +1 415 555 01{i % 90 + 10}."
            recent.append((prompt, answer))
            if len(recent) > 20_000:
                recent.pop(dice.randrange(len(recent)))
        name = FORMATS[i % 4]
        row: dict[str, Any] = {
            "alpaca": lambda p, a: {"instruction": p, "output": a},
            "prompt_completion": lambda p, a: {"prompt": p, "completion": a},
            "text_target": lambda p, a: {"text": p, "target": a},
            "messages": lambda p, a: {
                "messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]
            },
        }[name](prompt, answer)
        out[name].write(json.dumps(row, ensure_ascii=False) + "\n")
    for file in out.values():
        file.close()


# -- the same work, three ways --------------------------------------------------------------------


_CONTROLS = re.compile(_CONTROL)


def clean(text: str) -> str:
    """What the default options do to a text."""
    return _CONTROLS.sub("", unicodedata.normalize("NFC", text)).strip()


def _pairs_of(folder: Path, name: str) -> Any:
    import pandas as pd

    frame = pd.read_json(folder / f"{name}.jsonl", lines=True, dtype=False)
    if name == "messages":
        prompt = frame["messages"].map(lambda m: m[0]["content"])
        answer = frame["messages"].map(lambda m: m[1]["content"])
    else:
        prompt, answer = frame.iloc[:, 0], frame.iloc[:, 1]
    return pd.DataFrame({"prompt": prompt, "answer": answer})


def pandas_part(folder: Path, vectorised: bool = False) -> Any:
    """A plain pandas script; returns the rows that stay."""
    import pandas as pd

    whole = pd.concat([_pairs_of(folder, name) for name in FORMATS], ignore_index=True)
    for column in ("prompt", "answer"):
        if vectorised:
            text = whole[column].astype("string[pyarrow]").str.normalize("NFC")
            whole[column] = text.str.replace(_CONTROL, "", regex=True).str.strip()
        else:
            whole[column] = whole[column].map(clean)
    lengths = whole["prompt"].str.len().between(1, 20_000) & whole["answer"].str.len().between(1, 20_000)
    return whole[lengths].drop_duplicates(["prompt", "answer"])


def datasets_part(folder: Path, out: Path) -> Any:
    """The same with Hugging Face datasets: `map` in batches, `filter` with a set of what was seen."""
    from datasets import concatenate_datasets, load_dataset

    def mapped(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        if "messages" in batch:
            pairs = [(m[0]["content"], m[1]["content"]) for m in batch["messages"]]
        else:
            pairs = list(zip(*(list(batch.values())[:2]), strict=True))
        return {"prompt": [clean(p) for p, _ in pairs], "answer": [clean(a) for _, a in pairs]}

    parts = []
    for name in FORMATS:
        part: Any = load_dataset(
            "json", data_files=str(folder / f"{name}.jsonl"), split="train", cache_dir=str(out / "cache")
        )
        parts.append(part.map(mapped, batched=True, remove_columns=part.column_names))
    seen: set[bytes] = set()

    def fresh(batch: dict[str, list[str]]) -> list[bool]:
        kept = []
        for p, a in zip(batch["prompt"], batch["answer"], strict=True):
            key = hashlib.blake2b(f"{p}\0{a}".encode(), digest_size=16).digest()
            kept.append(key not in seen and 1 <= len(p) <= 20_000 and 1 <= len(a) <= 20_000)
            seen.add(key)
        return kept

    return concatenate_datasets(parts).filter(fresh, batched=True)


def ftaas(folder: Path, out: Path, whole: bool, runner: str, workers: int) -> None:
    """`prepare` as the platform runs it, through its stage program's own functions."""
    from ftaas_pipelines.data.inputs import DatasetInputs, SourceInput, SplitsInputs
    from ftaas_pipelines.projects.dataset import Cleaning, Duplicates, Privacy, Quality, Splits
    from ftaas_pipelines.stages import prepare
    from ftaas_pipelines.stages.spec import Run, Spec
    from ftaas_pipelines.store import Store, file_digest

    files = {name: folder / f"{name}.jsonl" for name in FORMATS}
    inputs = DatasetInputs(
        sources=[SourceInput(name=n, sha256=file_digest(p), split=None, format=n) for n, p in files.items()],
        system="",
        group_by=None,
        cleaning=Cleaning(),
        duplicates=Duplicates(near="group" if whole else "off"),
        privacy=Privacy(profile="default") if whole else Privacy(profile="off", toxicity="off"),
        quality=Quality(max_dropped_share=1.0),
    )
    run = Run(
        home=out,
        store=out / "store",
        ledger=f"sqlite:///{out}/ledger.db",
        actor="benchmark",
        files={name: [path] for name, path in files.items()},
        data_runner=runner,  # pyright: ignore[reportArgumentType]
        data_workers=workers,
    )

    class Silent:
        def progress(self, done: float, message: str) -> None:
            print(f"{time.process_time():8.1f} {done:.2f} {message}", file=sys.stderr)

        def metrics(self, step: int, values: dict[str, float]) -> None: ...

    store = Store(run.store)
    spec = Spec(
        stage="prepare", project="bench", asset="dataset", inputs=inputs.model_dump(mode="json"), run=run
    )
    if not whole:
        from ftaas_pipelines.data import dataset
        from ftaas_pipelines.data.engine import Runner

        named = dataset.Files({name: [path] for name, path in files.items()})
        done = dataset.compare(inputs, named, store.work(spec.input_digest), Runner("native", workers))
        said(out)
        _write_kept(done.tasks, out)
        return
    made = prepare.make(spec, store, Silent())
    options = SplitsInputs(dataset=made.digest, options=Splits())
    spec = Spec(
        stage="prepare", project="bench", asset="splits", inputs=options.model_dump(mode="json"), run=run
    )
    splits = prepare.make(spec, store, Silent())
    (out / "facts.json").write_text(json.dumps({"dataset": made.content, "splits": splits.content}))


def said(out: Path) -> None:
    """What this process and its children have used up to here, for `measured`."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    (out / "cpu").write_text(str(sum(u.ru_utime + u.ru_stime for u in used)))


def _write_kept(tasks: list[dict[str, Any]], out: Path) -> None:
    """The rows that the reduce kept, for the comparison row by row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = []
    for task in tasks:
        folder = Path(task["out"])
        rows: Any = pa.ipc.open_file(str(folder / "rows.arrow")).read_all().select(["prompt", "answer"])
        kept.append(rows.filter(pa.array(np.load(folder / "decisions.npy") == 0)))
    pq.write_table(pa.concat_tables(kept), out / "rows.parquet")


# -- measuring -------------------------------------------------------------------------------------


def measured(system: str, folder: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One system in a process of its own: CPU seconds, wall seconds, peak memory in GB."""
    out.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.data", "--system", system, "--folder", str(folder)]
    command += ["--out", str(out), "--runner", options.runner, "--workers", str(options.workers)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with (out / "log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        peak = _peak(child)
        if child.wait():
            sys.exit(f"{system} failed:\n{(out / 'log').read_text()[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if (out / "cpu").is_file():
        cpu = float((out / "cpu").read_text())
    return {
        "cpu_s": round(cpu, 1),
        "wall_s": round(time.monotonic() - started, 1),
        "peak_gb": round(peak / 1e9, 2),
        "rows_per_cpu_s": round(options.rows / cpu),
    }


def _peak(child: "subprocess.Popen[bytes]") -> int:
    peak, done = 0, threading.Event()
    root = psutil.Process(child.pid)
    while child.poll() is None and not done.wait(0.1):
        total = 0
        try:
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            break
        for process in family:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
    return peak


def same_rows(outs: dict[str, Path]) -> bool:
    """Whether all three kept the very same rows."""
    import pyarrow.parquet as pq

    digests = set()
    for out in outs.values():
        table = pq.read_table(out / "rows.parquet", columns=["prompt", "answer"])
        table = table.sort_by([("prompt", "ascending"), ("answer", "ascending")])
        digest = hashlib.sha256()
        for batch in table.to_batches(max_chunksize=10_000):
            digest.update(json.dumps(batch.to_pylist()).encode())
        digests.add(digest.hexdigest())
    return len(digests) == 1


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runner", default="native", choices=["native", "ray"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only-whole", action="store_true", help="the whole line alone (10 million rows)")
    parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        if options.system.startswith("ftaas"):
            whole = options.system == "ftaas_whole"
            ftaas(options.folder, options.out, whole, options.runner, options.workers)
        else:
            if options.system == "datasets":
                rows = datasets_part(options.folder, options.out)
            else:
                rows = pandas_part(options.folder, vectorised=options.system == "pandas_vectorised")
            said(options.out)
            rows.to_parquet(str(options.out / "rows.parquet"))
        return
    with tempfile.TemporaryDirectory(prefix="ftaas-benchmark-") as name:
        print(json.dumps(compare(Path(name), options), indent=1))


def compare(home: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the systems one after the other on the same files."""
    raw = home / "raw"
    raw.mkdir()
    generate(raw, options.rows)
    systems = ("ftaas_whole",) if options.only_whole else SYSTEMS
    found = {system: measured(system, raw, home / system, options) for system in systems}
    result: dict[str, Any] = {
        "rows": options.rows,
        "bytes": sum(p.stat().st_size for p in raw.iterdir()),
        "machine": {"cpus": os.cpu_count(), "cpu": platform.processor() or platform.machine()},
        "runner": {"kind": options.runner, "workers": options.workers},
        "systems": found,
        "facts": json.loads((home / "ftaas_whole" / "facts.json").read_text()),
    }
    result["whole_us_per_row"] = round(1e6 * found["ftaas_whole"]["cpu_s"] / options.rows, 1)
    if not options.only_whole:
        better = min(found["pandas"]["cpu_s"], found["datasets"]["cpu_s"])
        result["part_times_the_better"] = round(better / found["ftaas_part"]["cpu_s"], 2)
        result["whole_over_part"] = round(found["ftaas_whole"]["cpu_s"] / found["ftaas_part"]["cpu_s"], 2)
        vectorised = found["pandas_vectorised"]["cpu_s"] / found["ftaas_part"]["cpu_s"]
        result["part_times_vectorised_pandas"] = round(vectorised, 2)
        outs = {s: home / s for s in SYSTEMS if s != "ftaas_whole"}
        result["same_rows"] = same_rows(outs)
    return result


if __name__ == "__main__":
    main()
