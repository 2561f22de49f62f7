"""Hugging Face datasets: of the Hub by id and revision, or a folder beside the project. Landed as Parquet."""

from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources.fetched import Fetched
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.dataset import HuggingFace
from ftaas_pipelines.store import digest_of

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves


def fetch(named: HuggingFace, folder: Path, into: Path, before: Fetched | None) -> Fetched | None:
    """One split as Parquet; None when the commit is that of `before` (a folder: its files' sizes and times).

    The Hub's token is the library's own variable, HF_TOKEN.

    Raises:
        InputInvalid: there is no such dataset, configuration or split, or it has no row.
        FtaasError: the Hub cannot be reached.
    """
    local = (folder / Path(named.id).expanduser()).resolve()
    where = str(local) if local.is_dir() else f"huggingface {named.id}@{named.revision}"
    try:
        token = _folder_token(local) if local.is_dir() else _commit(named)
        if before and before.token == token:
            return None
        rows = _saved(local, named) if local.is_dir() else _loaded(named.id, named, revision=token)
        if not len(rows):
            raise InputInvalid("the split has no row", where, named.split, "name another split")
        target = into / "rows.parquet"
        rows.to_parquet(str(target))
    except FtaasError:
        raise
    except (ValueError, FileNotFoundError) as error:  # of the library: no such dataset, configuration, split
        do = "mend id, config, split or revision"
        raise InputInvalid("cannot be loaded", where, str(error).partition("\n")[0], do) from None
    except Exception as error:  # connection errors of several libraries
        got = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        do = "check the network and HF_TOKEN, or save the dataset to disk and name the folder"
        raise FtaasError("cannot be fetched", where, got, do) from error
    return Fetched(files=[target], token=token, rows=len(rows))


def _folder_token(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in files}
    return digest_of({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})


def _commit(named: HuggingFace) -> str:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(named.id, revision=named.revision).sha or named.revision


def _saved(folder: Path, named: HuggingFace) -> Any:
    from datasets import DatasetDict, load_from_disk

    if not any((folder / name).is_file() for name in _SAVED):
        return _loaded(str(folder), named)
    found = load_from_disk(str(folder))
    if not isinstance(found, DatasetDict):
        return found
    if named.split not in found:
        raise InputInvalid(
            "there is no such split", str(folder), named.split, f"one of: {', '.join(map(str, found))}"
        )
    return found[named.split]


def _loaded(place: str, named: HuggingFace, **more: Any) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(place, named.config, split=named.split, **more)
