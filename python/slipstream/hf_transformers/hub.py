"""Repositories by name: fetches one layout's files through huggingface_hub, which is imported only when needed."""

import errno
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from slipstream.errors import CheckpointError, ConfigError
from slipstream.hf_transformers.layout import LAYOUTS, Layout, choose_layout, weight_files
from slipstream.hf_transformers.role import Role
from slipstream.hf_transformers.safetensors_header import read_index
from slipstream.hf_transformers.tokenizer_files import is_tokenizer_file
from slipstream.log import get_logger

# Beside configuration, weights and tokenizer.
COMPANIONS = (
    "generation_config.json",  # end-of-sequence tokens: eos.py
    "chat_template.jinja",  # this one and the rest by the tokenizer process, where the tokenizer is tokenizer.json
    "chat_template.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
_REVISION_FLAGS: dict[Role, str] = {"target": "--revision", "draft": "--speculative-draft-model-revision"}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_CACHE_FOLDER = re.compile(r"models--([^-].*?)--(.+)")  # of huggingface_hub: models--org--name/snapshots/<commit>

_log = get_logger(__name__)


def resolve_path(
    path: str | None,
    revision: str | None = None,
    load_format: str = "auto",
    config_format: str = "auto",
    *,
    endpoint: str | None = None,
    cache_dir: str | None = None,
    role: Role = "target",
) -> str | None:
    """A folder on this machine for `path`: itself where it exists, else the fetched files of the repository `path`.
    None, the model that ships with the package, stays None.

    Only the files of the layout that choose_layout() takes are fetched, and what belongs to every layout (tokenizer,
    chat template, ...). Progress goes to stderr. Without a network, or with HF_HUB_OFFLINE=1, what was fetched before
    is used. `endpoint` and `cache_dir` are those of huggingface_hub (HF_ENDPOINT, HF_HUB_CACHE) unless given.
    Raises CheckpointError, and ConfigError for a `revision` of nothing. A `path` that is neither comes back as it is;
    inspecting it says so.
    """
    if path is None:
        if revision is not None:
            raise ConfigError("--revision is given without --model-path; it is a repository's")
        return None
    if os.path.lexists(path) or not is_repository(path):
        if revision is not None:
            raise CheckpointError(
                path, [f"{_REVISION_FLAGS[role]} goes with the name of a repository, and this is none"]
            )
        return path
    return _Repository(path, revision, endpoint, cache_dir, role).fetch(load_format, config_format)


def is_repository(path: str) -> bool:
    """Whether `path` has the form of a repository's name.

    >>> [is_repository(path) for path in ("mistralai/Mistral-7B-v0.3", "./folder/model", "/models/a", "model")]
    [True, False, False, False]
    """
    return _REPOSITORY.fullmatch(path) is not None and ".." not in path and "--" not in path


def repository_name(folder: Path) -> str | None:
    """The name of the repository whose snapshot in huggingface_hub's cache `folder` is.

    >>> repository_name(Path("/cache/models--mistralai--Small/snapshots/0123"))
    'mistralai/Small'
    """
    if folder.parent.name != "snapshots" or (match := _CACHE_FOLDER.fullmatch(folder.parent.parent.name)) is None:
        return None
    return f"{match[1]}/{match[2]}"


def needed_files(names: Iterable[str], config: Layout, weights: Sequence[str]) -> list[str]:
    """Of a repository's files, those to fetch."""
    wanted = {config.config_file, *weights, *COMPANIONS}
    return sorted(name for name in names if name in wanted or is_tokenizer_file(name))


class _Repository:
    def __init__(
        self, name: str, revision: str | None, endpoint: str | None, cache_dir: str | None, role: Role
    ) -> None:
        self._name = name
        self._role: Role = role
        self._revision = revision
        self._endpoint = endpoint
        self._cache_dir = cache_dir
        self._source: dict[str, Any] = {"revision": revision, "endpoint": endpoint, "cache_dir": cache_dir}

    def fetch(self, load_format: str, config_format: str) -> str:
        """The folder in the local cache that holds the files."""
        from huggingface_hub import snapshot_download

        sizes = self._list_files()
        if sizes is None:
            return self._cached(load_format, config_format)
        choice, problems = choose_layout(list(sizes), load_format, config_format, self._role)
        if choice is None:
            raise CheckpointError(self._name, problems)
        weights = self._weight_files(sizes, choice.weights) if choice.weights else []
        files = needed_files(sizes, choice.config, weights)
        self._check_space({name: sizes[name] for name in files})
        with self._clear_errors():
            patterns = [escape(name) for name in files]
            path: str = snapshot_download(self._name, **self._source, allow_patterns=patterns)
            return path

    def _list_files(self) -> dict[str, int] | None:
        """Names and bytes of the files at the top of the repository; None where it cannot be asked."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        with self._clear_errors():
            try:
                info = HfApi(endpoint=self._endpoint).model_info(
                    self._name, revision=self._revision, files_metadata=True
                )
            except OfflineModeIsEnabled:
                return None
            except HfHubHTTPError:
                raise
            except _transport_error() as error:
                _log.warning("%s cannot be reached (%s); looking into the local cache", self._host(), error)
                return None
        return {file.rfilename: file.size or 0 for file in info.siblings or [] if "/" not in file.rfilename}

    def _weight_files(self, sizes: Mapping[str, int], layout: Layout) -> list[str]:
        """The files that the index names, and the index; without one all that have the layout's name."""
        from huggingface_hub import hf_hub_download

        if layout.index_file not in sizes:
            return weight_files(sizes, layout.weights_stem)
        with self._clear_errors():
            path: str = hf_hub_download(self._name, layout.index_file, **self._source)
        problems: list[str] = []
        named = set((read_index(Path(path), problems) or {}).values())
        problems += [f"the repository has no {name}, but {layout.index_file} names it" for name in named - sizes.keys()]
        if problems:
            raise CheckpointError(self._name, sorted(problems)[:20])
        return [layout.index_file, *named]

    def _check_space(self, sizes: Mapping[str, int]) -> None:
        """A download of hundreds of gigabytes should not fail at its end."""
        wanted = sum(size for name, size in sizes.items() if self._in_cache(name) is None)
        folder = self._cache_folder()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if wanted > free:
            said = (
                f"fetching it takes {wanted / 2**30:.1f} GiB and {self._cache_folder()} has {free / 2**30:.1f} GiB "
                "free; free some, or let HF_HUB_CACHE name a folder on a larger disk"
            )
            raise CheckpointError(self._name, [said])

    def _in_cache(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._name, file, cache_dir=self._cache_dir, revision=self._revision)
        return Path(path) if isinstance(path, str) else None

    def _cached(self, load_format: str, config_format: str) -> str:
        """The snapshot that is in the local cache, if a layout in it is complete."""
        path = next(filter(None, (self._in_cache(layout.config_file) for layout in LAYOUTS)), None)
        if path is None:
            said = (
                f"this is no folder on this machine, {self._cache_folder()} does not hold it, and {self._host()} "
                "cannot be asked; unset HF_HUB_OFFLINE where it is set, check the network, or name a folder"
            )
            raise CheckpointError(self._name, [said])
        choice, problems = choose_layout(os.listdir(path.parent), load_format, config_format, self._role)
        if choice is None:
            problems.append(f"only the local cache was looked at, because {self._host()} cannot be asked")
            raise CheckpointError(self._name, problems)
        return str(path.parent)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Every failure of huggingface_hub as one sentence."""
        from huggingface_hub.errors import HFValidationError

        try:
            yield
        except (OSError, HFValidationError, RuntimeError, _transport_error()) as error:  # hf_xet: RuntimeError
            raise CheckpointError(self._name, [self._sentence(error)]) from error

    def _sentence(self, error: Exception) -> str:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        host = self._host()
        log_in = "set HF_TOKEN or run `hf auth login`"
        match error:
            case GatedRepoError():
                return f"the repository is gated: accept its terms at {host}/{self._name}, and {log_in}"
            case RepositoryNotFoundError():
                return (
                    "this is no folder on this machine, and no public repository of this name is at "
                    f"{host}; check the spelling, or, if it is private, {log_in}"
                )
            case RevisionNotFoundError():
                known = f"{_REVISION_FLAGS[self._role]} takes a branch, tag or commit"
                return f"the repository has no revision {self._revision!r}; {known}"
            case HfHubHTTPError():
                status = error.response.status_code
                what = log_in if status in (401, 403) else "try again later"
                return f"{host} answered with status {status}; {what}"
            case LocalEntryNotFoundError():
                return f"the connection to {host} was lost, and the local cache has not all files; try again"
            case OSError(errno=errno.ENOSPC | errno.EDQUOT):
                return f"no space is left in {self._cache_folder()}; let HF_HUB_CACHE name a folder on a larger disk"
            case OSError(errno=int()):
                return f"the files cannot be kept in {self._cache_folder()}: {error}"
        return f"the files cannot be fetched from {host}: {str(error)[:300] or type(error).__name__}"

    def _host(self) -> str:
        from huggingface_hub import constants

        return self._endpoint or constants.ENDPOINT

    def _cache_folder(self) -> Path:
        from huggingface_hub import constants

        return Path(self._cache_dir or constants.HF_HUB_CACHE)


def _transport_error() -> type[Exception]:
    """The base of network errors: HTTPError of the HTTP library, which changes between huggingface_hub's versions."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]
    if not issubclass(base, Exception):
        raise TypeError(f"{base} is no exception")
    return base
