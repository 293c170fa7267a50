"""Where a generator's files are: embedded, in a local folder, or on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from dso_jax.errors import UsageError

PIPELINE = "pipeline.json"
EMBEDDED = {"toybox": Path(__file__).parent.parent / "toybox" / "weights"}
# What the published generators are called here -> their repository.
PUBLISHED = {
    f"TRELLIS-{size}": f"microsoft/TRELLIS-{size}"
    for size in ("image-large", "text-base", "text-large", "text-xlarge")
}
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def repository(name: str) -> str | None:
    """The hub repository that `name` stands for; None if it is embedded, a local path or no name.

    What exists locally is never looked up elsewhere.
    """
    if name in EMBEDDED or Path(name).exists():
        return None
    if name in PUBLISHED:
        return PUBLISHED[name]
    return name if _REPOSITORY.fullmatch(name) else None


def resolve(name: str, *, offline: bool | None = None) -> Path:
    """The pipeline folder of an embedded generator, a local path or a hub repository.

    Of a repository only `pipeline.json` is fetched here, into the hub's own cache.

    Args:
      offline: True takes from the hub only what its cache holds; None asks `HF_HUB_OFFLINE`.

    Raises:
      UsageError: none of the three, or the hub's own reason why it has no such file.
    """
    if repo := repository(name):
        return fetch(repo, PIPELINE, offline=offline).parent
    folder = EMBEDDED.get(name, Path(name))
    if not (folder / PIPELINE).is_file():
        known = ", ".join([*EMBEDDED, *PUBLISHED])
        raise UsageError(
            f"base {name!r}: no {folder / PIPELINE}; expected {known}, a TRELLIS folder or a "
            "repository of the Hugging Face hub"
        )
    return folder


def model_files(
    folder: Path, stem: str, *, repo: str | None = None, offline: bool | None = None
) -> tuple[Path, Path]:
    """Description (.json) and weights (.safetensors) of a model that `pipeline.json` names.

    A stem is relative to the folder; where no such file is, it may name another repository's, as
    the text pipelines name the image pipeline's decoder.

    Args:
      repo: the repository that `folder` was fetched from.

    Raises:
      UsageError: the files are nowhere.
    """
    names = (f"{stem}.json", f"{stem}.safetensors")
    local = [folder / name for name in names]
    if all(path.is_file() for path in local):
        return local[0], local[1]
    if repo is not None and ".." not in Path(stem).parts:
        found = [fetch(repo, name, offline=offline) for name in names]
        return found[0], found[1]
    owner, _, rest = stem.partition("/")
    other, _, inside = rest.partition("/")
    # A folder that has one of the two files is damaged; it does not mean another repository.
    if not any(path.is_file() for path in local) and not (folder / owner).exists() and inside:
        found = [
            fetch(f"{owner}/{other}", f"{inside}{Path(name).suffix}", offline=offline)
            for name in names
        ]
        return found[0], found[1]
    missing = next(path for path in local if not path.is_file())
    raise UsageError(f"{missing}: no such file, but {folder / PIPELINE} names it")


def fetch(repo: str, name: str, *, offline: bool | None = None) -> Path:
    """One file of a hub repository, from the hub's cache or the network.

    Raises:
      UsageError: huggingface_hub is not installed, or what it says about repository, file or
        network.
    """
    download, errors = _library(repo)
    try:
        # None leaves the choice to HF_HUB_OFFLINE, which the library reads itself.
        return Path(download(repo, name, local_files_only=bool(offline)))
    except errors as error:
        text = " ".join(str(error).split())
        where = "in the hub's cache (offline)" if offline else "on the Hugging Face hub"
        raise UsageError(
            f"{repo}/{name}: not to be had {where}: {type(error).__name__}: {text}; with a local "
            "copy, give its path"
        ) from error


def _library(repo: str) -> tuple[Callable[..., str], tuple[type[Exception], ...]]:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UsageError(
            f"{repo}: not a local folder, and the hub needs a package: pip install 'dso-jax[hub]'"
        ) from None
    errors = (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError)
    # LocalEntryNotFoundError, for one, is a FileNotFoundError; network errors are OSErrors.
    return huggingface_hub.hf_hub_download, (*errors, OSError)
