"""Which of a folder's or repository's files make up the checkpoint, from the names of the files alone."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slipstream.hf_transformers.role import Role

LOAD_FORMAT_FLAGS: dict[Role, str] = {"target": "--load-format", "draft": "--speculative-draft-load-format"}
_PICKLES = re.compile(r"\.(pth|pt|bin|ckpt)$")
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")
_MAX_SHOWN = 20  # files of one folder, or shards of one file set, that a message lists


@dataclass(frozen=True)
class Layout:
    """One way in which checkpoints are published."""

    name: str
    config_file: str
    weights_stem: str

    @property
    def weights(self) -> str:
        return f"{self.weights_stem}*.safetensors"

    @property
    def index_file(self) -> str:
        return f"{self.weights_stem}.safetensors.index.json"


# In order of preference: Mistral's own files first, where both are complete.
LAYOUTS = (Layout("mistral", "params.json", "consolidated"), Layout("hf", "config.json", "model"))


@dataclass(frozen=True)
class Choice:
    """The layout whose configuration is read and the one whose weights are loaded (None: random ones), and why."""

    config: Layout
    weights: Layout | None
    flags: str = ""  # those that asked for it
    unread: tuple[str, ...] = ()  # what lies there of the other layout

    def reason(self, files: Sequence[str]) -> str:
        """One clause; `files` are those of the weights that are read.

        >>> Choice(LAYOUTS[0], LAYOUTS[0], unread=("config.json",)).reason(["consolidated.safetensors"])
        'params.json and consolidated.safetensors; config.json is there too and is not read'
        """
        text = self.config.config_file
        if self.weights:
            text += " and " + (files[0] if len(files) == 1 else f"{self.weights.weights} ({len(files)} files)")
        if self.flags:
            text += f", as {self.flags} {'say' if ' and ' in self.flags else 'says'}"
        if self.unread:
            verb = "is there too and is" if len(self.unread) == 1 else "are there too and are"
            text += f"; {' and '.join(self.unread)} {verb} not read"
        return text


def choose_layout(
    names: Sequence[str], load_format: str, config_format: str, role: Role = "target"
) -> tuple[Choice | None, list[str]]:
    """The choice for a folder with these files, or None and sentences that say what is missing.

    `load_format` "mistral", "hf" or "dummy" names the weights, `config_format` "mistral" or "hf" the configuration
    file. Where one of them is "auto" it follows the other; where both are, the first complete layout is taken. The
    sentences name the flags of the checkpoint's `role`.

    >>> choose_layout(["params.json", "consolidated.safetensors", "model.safetensors"], "auto", "auto")[0].unread
    ('model*.safetensors',)
    """
    candidates = [
        (config, weights)
        for config in LAYOUTS
        for weights in ((None,) if load_format == "dummy" else LAYOUTS)
        if config_format in ("auto", config.name)
        and (weights is None or load_format in ("auto", weights.name))
        and (weights in (None, config) or "auto" not in (load_format, config_format))
    ]
    for config, weights in candidates:
        if not _missing(names, config, weights):
            given = (("--config-format", config_format), (LOAD_FORMAT_FLAGS[role], load_format))
            flags = " and ".join(f"{flag} {value}" for flag, value in given if value != "auto")
            return Choice(config, weights, flags, _unread(names, config, weights)), []
    return None, _incomplete(names, candidates, role)


def weight_files(names: Iterable[str], stem: str) -> list[str]:
    """Of `names`, sorted, those that hold weights when no index says which do.

    >>> weight_files(["model-1-of-2.safetensors", "model.safetensors.index.json", "models.safetensors"], "model")
    ['model-1-of-2.safetensors']
    """
    pattern = re.compile(re.escape(stem) + r"([-._][\w.-]*)?\.safetensors")
    return sorted(name for name in names if pattern.fullmatch(name))


def missing_shards(files: Iterable[str]) -> list[str]:
    """Of names like x-00001-of-00003.safetensors, those that must exist too; no more of them than are worth reporting.

    >>> missing_shards(["m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"])
    ['m-00002-of-00003.safetensors']
    """
    present = set(files)
    sets = {(file[: match.start()], len(match[1]), match[2]) for file in present if (match := _SHARD.search(file))}
    missing: list[str] = []
    for prefix, width, total in sorted(sets):
        for number in range(1, int(total[:9]) + 1):
            name = f"{prefix}-{number:0{width}}-of-{total}.safetensors"
            if name not in present:
                missing.append(name)
            if len(missing) == _MAX_SHOWN:
                return missing
    return missing


def _missing(names: Sequence[str], config: Layout, weights: Layout | None) -> list[str]:
    missing = [] if config.config_file in names else [config.config_file]
    if weights and not _has_weights(names, weights):
        missing.append(weights.weights)
    return missing


def _has_weights(names: Sequence[str], layout: Layout) -> bool:
    return layout.index_file in names or bool(weight_files(names, layout.weights_stem))


def _unread(names: Sequence[str], config: Layout, weights: Layout | None) -> tuple[str, ...]:
    return (
        *(layout.config_file for layout in LAYOUTS if layout != config and layout.config_file in names),
        *(layout.weights for layout in LAYOUTS if layout != weights and weight_files(names, layout.weights_stem)),
    )


def _incomplete(names: Sequence[str], candidates: Sequence[tuple[Layout, Layout | None]], role: Role) -> list[str]:
    parts = []
    for config, weights in candidates:
        needed = [config.config_file, *([weights.weights] if weights else [])]
        missing = _missing(names, config, weights)
        state = "all missing" if len(missing) == len(needed) > 1 else f"{' and '.join(missing)} missing"
        parts.append(f"{' + '.join(needed)} ({state})")
    shown = ", ".join(name[:80] for name in sorted(names)[:_MAX_SHOWN])
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    needs_weights = all(weights for _, weights in candidates)
    has_none = not any(_has_weights(names, layout) for layout in LAYOUTS)
    random = f"; {LOAD_FORMAT_FLAGS[role]} dummy, random weights, needs only the configuration"
    hint = random if needs_weights and has_none else ""
    problems = [f"no complete layout: it needs {' or '.join(parts)}{hint}", f"files seen: {shown or 'none'}{more}"]
    mixed = _mixed_hint(names, candidates) if role == "target" else []  # a draft has its own layout only
    return [*problems, *mixed, *_other_formats(names)]


def _mixed_hint(names: Sequence[str], candidates: Sequence[tuple[Layout, Layout | None]]) -> list[str]:
    """Half of each layout can make a whole one, but only when asked for: the halves may be of different models."""
    return [
        f"{config.config_file} and {weights.weights} are there: --config-format {config.name} "
        f"--load-format {weights.name} reads them together"
        for config in LAYOUTS
        for weights in LAYOUTS
        if config != weights and (config, weights) not in candidates and not _missing(names, config, weights)
        if len(candidates) > 1
    ]


def _other_formats(names: Sequence[str]) -> list[str]:
    """What to do with weights that are not in safetensors files."""
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return [f"{gguf[0][:80]} is a GGUF file; only safetensors files are read: get the original checkpoint"]
    pickles = sorted(name for name in names if _PICKLES.search(name))
    if not pickles:
        return []
    stem = "consolidated" if pickles[0].startswith("consolidated") else "model"
    return [
        f"{pickles[0][:80]} holds pickled weights; only safetensors files are read. To convert, read it with PyTorch "
        f"(weights_only=True) and write the tensors to {stem}.safetensors with safetensors.torch.save_file"
    ]
