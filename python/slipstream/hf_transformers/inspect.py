"""Reads what a checkpoint folder is from its files' content, never from its name.

inspect_checkpoint() and inspect_draft() raise what is wrong; examine() returns it beside what could be found out.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from slipstream.errors import CheckpointError
from slipstream.hf_transformers.adapted import Adapted
from slipstream.hf_transformers.drafter import drafter_spec
from slipstream.hf_transformers.dtypes import DEFAULT_DTYPE, DTYPES, check_dtypes, stored_dtype
from slipstream.hf_transformers.embedded import embedded_path
from slipstream.hf_transformers.eos import find_eos_token_ids
from slipstream.hf_transformers.hf_config import adapt_hf_config
from slipstream.hf_transformers.hub import repository_name
from slipstream.hf_transformers.json_file import MAX_CONFIG_BYTES, read_json_object
from slipstream.hf_transformers.layout import LOAD_FORMAT_FLAGS, Choice, Layout, choose_layout
from slipstream.hf_transformers.params_json import adapt_params
from slipstream.hf_transformers.role import Role, dense_layers, find_role
from slipstream.hf_transformers.safetensors_header import find_weight_files, read_tensors
from slipstream.hf_transformers.spec import CheckpointSpec, DrafterSpec, ModelSpec, TensorInfo
from slipstream.hf_transformers.special_ids import special_ids
from slipstream.hf_transformers.tokenizer_files import locate_tokenizer
from slipstream.hf_transformers.tokenizer_size import check_tokenizer_size

EMBEDDED_NAME = "slipstream-embedded"
_MAX_FILES = 20_000  # in one folder; checkpoints have up to a few hundred


def inspect_checkpoint(
    path: str | None,
    load_format: str = "auto",
    tokenizer_path: str | None = None,
    *,
    config_format: str = "auto",
    needs_tokenizer: bool = True,
) -> ModelSpec:
    """The target that the folder `path` holds; None is the model that ships with the package.

    `load_format` "mistral" or "hf" chooses whose weights are loaded, `config_format` which configuration file is read;
    "auto" follows the other, or takes the first complete layout. "dummy" weights need a configuration file only, and
    the spec has no tensors. Without `needs_tokenizer` (the worker) a missing tokenizer is a warning, and its kind and
    path are empty. Reads configuration files, safetensors headers and lists of special tokens only.
    Raises CheckpointError with every problem found; a draft is one.
    """
    spec, problems = examine(
        path,
        "target",
        load_format,
        tokenizer_path,
        config_format=config_format,
        needs_tokenizer=needs_tokenizer,
    )
    if problems or not isinstance(spec, ModelSpec):
        raise CheckpointError(str(embedded_path()) if path is None else path, problems)
    return spec


def inspect_draft(path: str, load_format: str = "auto", *, config_format: str = "auto") -> DrafterSpec:
    """The draft that the folder `path` holds; options and errors as for inspect_checkpoint. A target is an error."""
    spec, problems = examine(path, "draft", load_format, config_format=config_format)
    if problems or not isinstance(spec, DrafterSpec):
        raise CheckpointError(path, problems)
    return spec


def examine(
    path: str | None,
    role: Role,
    load_format: str = "auto",
    tokenizer_path: str | None = None,
    *,
    config_format: str = "auto",
    needs_tokenizer: bool = False,
) -> tuple[CheckpointSpec | None, list[str]]:
    """What `path` holds in the role that the caller needs, and one sentence for each thing that is wrong with it.

    There is a spec beside problems where the configuration itself is sound: weights are missing, say, or damaged.
    A ModelSpec for the role "target", a DrafterSpec for "draft". Options are those of inspect_checkpoint.
    """
    problems: list[str] = []
    look = _open_folder(path, role, load_format, config_format, problems)
    spec: CheckpointSpec | None = None
    if look is not None and look.has_role(role):
        spec = look.draft() if role == "draft" else look.target(tokenizer_path, needs_tokenizer)
    return spec, [_printable(problem) for problem in problems]


def _open_folder(
    path: str | None, role: Role, load_format: str, config_format: str, problems: list[str]
) -> "_Look | None":
    if path == "":
        problems.append("the path is empty; name a folder, or leave the flag out")
        return None
    folder = embedded_path() if path is None else Path(path)
    names = list_files(folder, problems)
    if problems:
        return None
    choice, incomplete = choose_layout(names, load_format, config_format, role)
    problems.extend(incomplete)
    if choice is None:
        return None
    values = read_json_object(folder / choice.config.config_file, MAX_CONFIG_BYTES, problems)
    if values is None:
        return None
    name = EMBEDDED_NAME if path is None else repository_name(folder) or Path(os.path.realpath(folder)).name
    if choice.weights is None:
        stored = _unread_names(folder, choice.config, names) if role == "target" else []
        return _Look(folder, name, choice, values, (), (), stored, problems)
    files = find_weight_files(folder, choice.weights, names, problems)
    tensors = read_tensors(folder, files, problems)
    look = _Look(folder, name, choice, values, files.names, tensors, [tensor.name for tensor in tensors], problems)
    if choice.weights.name != choice.config.name:
        look.warnings.append(
            f"the configuration is read from {choice.config.config_file} and the weights from "
            f"{choice.weights.weights_stem}*.safetensors: both must be of one model"
        )
    if files.strays:
        shown = ", ".join(name[:80] for name in files.strays[:5]) + (", ..." if files.strays[5:] else "")
        look.warnings.append(f"not read, because {files.index} does not name it: {shown}")
    return look


def _unread_names(folder: Path, layout: Layout, names: list[str]) -> list[str]:
    """Names of the tensors that lie in `folder` where random weights are asked for. A draft given as a target shows.

    What is wrong with files that nobody loads is no problem.
    """
    ignored: list[str] = []
    files = find_weight_files(folder, layout, names, ignored)
    return list(files.weight_map) or [tensor.name for tensor in read_tensors(folder, files, ignored)]


def list_files(folder: Path, problems: list[str]) -> list[str]:
    """Names of what lies in `folder`, sorted; a folder that cannot be read becomes a sentence."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MAX_FILES + 1)]
    except NotADirectoryError:
        problems.append("this is a file; name the folder that holds it")
    except FileNotFoundError:
        problems.append("there is no such folder on this machine; name one, or a repository like org/name")
    except (OSError, ValueError) as error:  # ValueError: a null character
        problems.append(f"the folder cannot be read: {getattr(error, 'strerror', None) or error}")
    else:
        if len(names) <= _MAX_FILES:
            return sorted(names)
        problems.append(f"the folder holds more than {_MAX_FILES} files; name the one that holds the model")
    return []


@dataclass
class _Look:
    """One look at one folder: what was read so far, and what was found wrong."""

    folder: Path
    name: str
    choice: Choice
    values: Mapping[str, Any]
    files: tuple[str, ...]  # of the weights
    tensors: tuple[TensorInfo, ...]  # none where weights are to be random
    stored: Sequence[str]  # names of tensors, from which the role is known
    problems: list[str]
    warnings: list[str] = field(default_factory=list)

    def has_role(self, role: Role) -> bool:
        """False, and a sentence, where the content is of the other role or of a kind that cannot be loaded."""
        finding = find_role(self.stored, self.values)
        if finding is None or (finding.role == role and not finding.problem):
            return True
        if finding.problem:
            self.problems.append(finding.problem)
        elif finding.role == "draft":
            self.problems.append(
                f"this is a draft ({finding.kind}), not a target; give it with --speculative-draft-model-path, and "
                "its target with --model-path"
            )
        else:
            self.problems.append(
                "this is a target, not a draft: it holds no eagle_linear.weight; give it with --model-path, and with "
                "--speculative-draft-model-path the Mistral EAGLE draft that was made for it"
            )
        return False

    def target(self, tokenizer_path: str | None, needs_tokenizer: bool) -> ModelSpec | None:
        missing = self.problems if needs_tokenizer else self.warnings
        layout = self.choice.config.name
        kind, tokenizer = locate_tokenizer(self.folder, layout, tokenizer_path, missing) or ("", "")
        special_id = special_ids(kind, tokenizer, self.problems)
        adapted = self._adapt("target", special_id)
        if adapted is None:
            return None
        eos = find_eos_token_ids(
            self.folder,
            self.choice.config.config_file,
            self.values,
            kind,
            special_id,
            adapted.vocab_size,
            self.problems,
        )
        check_tokenizer_size(kind, tokenizer, adapted.vocab_size, self.problems, self.warnings)
        if not eos and kind:
            self.warnings.append(
                "nothing names an end-of-sequence token (generation_config.json, config.json and the tokenizer were "
                "asked); answers end at their length limit or a stop string"
            )
        return ModelSpec(
            **self._common(adapted),
            eos_token_ids=eos,
            tokenizer_kind=kind,
            tokenizer_path=tokenizer,
            images=adapted.images,
        )

    def draft(self) -> DrafterSpec | None:
        weights = self.choice.weights
        if weights and weights.name != "mistral":
            self.problems.append(
                f"a Mistral EAGLE draft has its weights in consolidated*.safetensors, and {weights.weights} was read "
                f"here; use {LOAD_FORMAT_FLAGS['draft']} mistral"
            )
            return None
        adapted = self._adapt("draft", special_ids("", "", self.problems))
        return None if adapted is None else drafter_spec(self._common(adapted), adapted.architecture)

    def _adapt(self, role: Role, special_id: Callable[[str], int | None]) -> Adapted | None:
        """None where the configuration has a problem: what was adapted then holds values that stand for wrong ones."""
        num_before = len(self.problems)
        if self.choice.config.name == "mistral":
            adapted = adapt_params(
                self.values,
                self.problems,
                role=role,
                special_id=special_id,
                stored_dense_layers=dense_layers(self.stored) if role == "draft" else None,
            )
        elif role == "draft":
            self.problems.append(
                "a Mistral EAGLE draft is described by params.json, and config.json was read here; name a folder that "
                "holds params.json"
            )
            return None
        else:
            has_head = any(name.endswith("lm_head.weight") for name in self.stored) if self.tensors else None
            adapted = adapt_hf_config(self.values, self.problems, special_id=special_id, has_head=has_head)
        return None if len(self.problems) > num_before else adapted

    def _common(self, adapted: Adapted) -> dict[str, Any]:
        """The fields of every spec."""
        weights = self.choice.weights
        quantization = adapted.quantization
        if weights and (self.tensors or not self.problems):  # else it is said already why there are none
            quantization = check_dtypes(self.tensors, quantization, self.problems, self.warnings)
        return {
            "path": str(self.folder),
            "name": self.name,
            "layout": (weights or self.choice.config).name,
            "layout_reason": self.choice.reason(self.files),
            "architecture": adapted.architecture,
            "config": adapted.config,
            "origins": adapted.origins,
            "dtype": stored_dtype(self.tensors) if weights else self._stated_dtype(adapted),
            "quantization": quantization,
            "tensors": self.tensors,
            "warnings": (*adapted.warnings, *self.warnings),
        }

    def _stated_dtype(self, adapted: Adapted) -> str:
        """Random weights have the dtype that the configuration names, else bfloat16."""
        dtype = adapted.dtype or DEFAULT_DTYPE
        if dtype not in DTYPES.values():
            self.problems.append(f"dtype is {dtype!r:.80}; supported: {', '.join(DTYPES.values())}")
            return DEFAULT_DTYPE
        return dtype


def _printable(text: str) -> str:
    """Names of files, and names in damaged ones, may hold anything, even what no terminal can show."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
