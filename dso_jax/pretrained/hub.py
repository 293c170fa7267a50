"""Where a generator's files are: embedded, in a local folder, or on the Hugging Face hub."""

from __future__ import annotations

import functools
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dso_jax.errors import UsageError

PIPELINE = "pipeline.json"
SUFFIXES = (".json", ".safetensors")  # of a model's description and weights
EMBEDDED = {"toybox": Path(__file__).parent.parent / "toybox" / "weights"}
# What the published generators are called here -> their repository.
PUBLISHED = {
    f"TRELLIS-{size}": f"microsoft/TRELLIS-{size}"
    for size in ("image-large", "text-base", "text-large", "text-xlarge")
}
PATIENCE = 5.0  # seconds for the hub to take up a connection
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class NotThere(UsageError):
    """The repository may be there, but has no such file."""


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
    the text pipelines name the image pipeline's decoder. Upstream looks in the same order.

    Args:
      repo: the repository that `folder` was fetched from.

    Raises:
      UsageError: the files are nowhere.
    """
    description, weights = _find(folder, stem, SUFFIXES, repo, offline)
    return description, weights


def description(
    folder: Path, stem: str, *, repo: str | None = None, offline: bool | None = None
) -> Path:
    """As `model_files`, for the description alone: no weights are fetched."""
    return _find(folder, stem, SUFFIXES[:1], repo, offline)[0]


def _find(
    folder: Path, stem: str, suffixes: Sequence[str], repo: str | None, offline: bool | None
) -> list[Path]:
    local = [folder / f"{stem}{suffix}" for suffix in suffixes]
    if all(path.is_file() for path in local):
        return local
    owner, _, rest = stem.partition("/")
    other, _, inside = rest.partition("/")
    # A folder that has one of the two files is damaged; it does not mean another repository.
    damaged = any((folder / f"{stem}{suffix}").is_file() for suffix in SUFFIXES)
    named = inside and not damaged and not (folder / owner).exists()
    if repo is not None and ".." not in Path(stem).parts:
        try:
            return [fetch(repo, f"{stem}{suffix}", offline=offline) for suffix in suffixes]
        except NotThere:
            if not named:
                raise
    if named:
        theirs = f"{owner}/{other}"
        return [fetch(theirs, f"{inside}{suffix}", offline=offline) for suffix in suffixes]
    missing = next(path for path in local if not path.is_file())
    raise UsageError(f"{missing}: no such file, but {folder / PIPELINE} names it")


def fetch(repo: str, name: str, *, offline: bool | None = None) -> Path:
    """One file of a hub repository, from the hub's cache or the network.

    Raises:
      NotThere: the repository has no such file, or the hub's cache has not and must do.
      UsageError: huggingface_hub is not installed, or what it says about repository or network.
    """
    library, errors = _library(repo)
    known = library.constants
    # None leaves the choice to HF_HUB_OFFLINE, which the library reads itself.
    silent = not (offline or known.HF_HUB_OFFLINE or _answers(known.ENDPOINT))
    try:
        return Path(library.hf_hub_download(repo, name, local_files_only=bool(offline) or silent))
    except errors as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        where = "in the hub's cache (offline)" if offline else "on the Hugging Face hub"
        if silent:
            where, text = "in the hub's cache", f"{known.ENDPOINT} does not answer"
        absent = isinstance(error, library.errors.EntryNotFoundError)
        raise (NotThere if absent else UsageError)(
            f"{repo}/{name}: no local file, and not to be had {where}: {text}; with a local copy, "
            "give its path"
        ) from error


@functools.cache
def _answers(endpoint: str) -> bool:
    """Whether the hub can be reached: its library tries for half a minute before it gives up.

    What lies behind a proxy only the proxy knows.
    """
    address = urllib.parse.urlsplit(endpoint)
    if urllib.request.getproxies() or address.hostname is None:
        return True
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _library(repo: str) -> tuple[ModuleType, tuple[type[Exception], ...]]:
    """huggingface_hub, and what it raises for a repository, a file or the network."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UsageError(
            f"{repo}: not a local folder, and the hub needs a package: pip install 'dso-jax[hub]'"
        ) from None
    errors = huggingface_hub.errors
    # What breaks off in the middle of a download comes as an error of the HTTP library, which
    # changes with the hub's releases: the hub's own error derives from it. A file that its cache
    # lacks is a FileNotFoundError.
    return huggingface_hub, (
        *errors.HfHubHTTPError.__bases__,
        errors.HFValidationError,
        errors.EntryNotFoundError,
        OSError,
    )
