"""Datasets on the Hugging Face hub, by name, where the network allows. Their files are read like any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.errors import Refused

READABLE = (
    ".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.xz", ".jsonl.bz2", ".json.gz", ".json.zst", ".ndjson",
    ".ndjson.zst", ".txt", ".txt.gz", ".warc.gz", ".wet.gz",
)  # fmt: skip


def parse(path: str, where: str) -> tuple[str, str]:
    """`hf:OWNER/NAME[@REVISION]` -> (OWNER/NAME, revision)."""
    name, _, revision = path.removeprefix("hf:").partition("@")
    if name.count("/") != 1 or not all(name.split("/")):
        raise Refused(f"{where}.path: '{path}': expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return name, revision or "main"


def files(path: str, where: str) -> dict[str, Any]:
    """{"revision": commit, "files": names} of a dataset, the commit pinned so that a resumed run reads the same."""
    name, revision = parse(path, where)
    try:
        from huggingface_hub import HfApi

        information = HfApi().dataset_info(name, revision=revision, timeout=20)
    except Exception as error:  # the library raises many kinds, from its own and from its HTTP client
        raise Refused(
            f"{where}.path: the dataset '{name}' cannot be reached ({type(error).__name__}: {_first_line(error)}); "
            "check the name and the network, or download its files and give their folder as path"
        ) from None
    names = sorted(each.rfilename for each in information.siblings or [] if each.rfilename.endswith(READABLE))
    if not names:
        raise Refused(f"{where}.path: the dataset '{name}' has no file of a kind that is read ({', '.join(READABLE)})")
    return {"revision": information.sha or revision, "files": names}


def download(path: str, revision: str, filename: str) -> Path:
    """One file of a dataset, from the hub or from its cache on this machine."""
    name, named = parse(path, "source")
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, filename, repo_type="dataset", revision=revision or named))
    except Exception as error:
        raise Refused(
            f"'{filename}' of the dataset '{name}' cannot be downloaded "
            f"({type(error).__name__}: {_first_line(error)}); run again when the network is back: what was read stays"
        ) from None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.split("\n", 1)[0][:200] if text else "no details"
