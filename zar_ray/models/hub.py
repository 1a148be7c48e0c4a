"""Files of the Hugging Face hub: from the cache, or downloaded where it answers."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from zar_ray.errors import ModelError, reason_of

REACH_SECONDS = 10.0


def hub_problem(seconds: float = REACH_SECONDS) -> str | None:
    """Why weights cannot be downloaded now; None where the model hub answers.

    Asked before a download, because the hub's own client tries again for most of a minute.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=seconds).close()
    except urllib.error.HTTPError:
        return None  # an answer is an answer
    except (OSError, ValueError) as error:
        return f"{constants.ENDPOINT} does not answer: {reason_of(getattr(error, 'reason', error))}"
    return None


def hub_file(repository: str, names: Sequence[str], asked: str) -> Path:
    """The first of some files that a repository has; messages call it `asked`.

    Raises:
        ModelError: There is no such repository or file, or it is not in the cache and cannot be downloaded.
    """
    return cached_file(repository, names) or _fetched(repository, names, asked, hf_hub_download)


def hub_folder(repository: str, signs: Sequence[str], patterns: Sequence[str], asked: str) -> Path:
    """A folder of a repository's files of some patterns, which is there if one of `signs` is; see `hub_file`."""

    def download(name: str, sign: str) -> str:
        # Taken when it is needed, as it loads the hub's whole interface.
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
        if not (folder / sign).is_file():
            raise EntryNotFoundError(sign)
        return str(folder / sign)

    return (cached_file(repository, signs) or _fetched(repository, signs, asked, download)).parent


def cached_file(repository: str, names: Sequence[str]) -> Path | None:
    """The first of some files of a repository that is in the cache; None where none is."""
    found = (try_to_load_from_cache(repository, name) for name in names)
    return next((Path(file) for file in found if isinstance(file, str)), None)


def _fetched(repository: str, names: Sequence[str], asked: str, download: Callable[[str, str], str]) -> Path:
    problem = hub_problem()
    for name in names if problem is None else ():
        try:
            return Path(download(repository, name))
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as error:
            raise ModelError(f"{asked}: the hub has no {repository}, or not for you") from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            problem = reason_of(error)
            break
    if problem is None:
        raise ModelError(f"{asked}: {repository} has no {' or '.join(names)}")
    raise ModelError(
        f"{asked}: {repository} is not in the cache and cannot be downloaded ({problem}); give a folder with"
        f" local-dir:PATH, or download it where there is a network and bring that machine's {constants.HF_HUB_CACHE}"
    )
