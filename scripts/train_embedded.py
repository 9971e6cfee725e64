"""Makes the small model that ships in `slipstream/embedded`, in stages that can run on different machines.

    corpus     here: read the standard library and installed packages, train the tokenizer, write token arrays
    train      there: needs torch, numpy and safetensors only; writes params.json and consolidated.safetensors
    evaluate   anywhere: both measurements on the exported bf16 weights
    install    here: put checkpoint, tokenizer, record and model card into one folder

    draft             there: train an EAGLE draft for the embedded model on a corpus, or for any target that Slipstream
                      can serve on any text (`--draft` is the same); docs_new/training-a-draft.mdx
    evaluate-draft    anywhere: acceptance length of a target and its draft
    install-draft     here: put the embedded model's draft beside it, with its record and its part of the model card

Run `python scripts/train_embedded.py STAGE --help` for the options of a stage.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import site
import sys
import warnings
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "python"
EMBEDDED = SOURCES / "slipstream" / "embedded"
sys.path.append(str(SOURCES))  # a machine that only trains need not install the package

MODEL_SHAPE = {
    "dim": 192, "n_layers": 16, "head_dim": 64, "hidden_dim": 512, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
    "vocab_size": 3072, "rope_theta": 1e4, "tied_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip


def run_corpus(args: argparse.Namespace) -> None:
    from embedded_training.corpus import build_corpus

    warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes, met while parsing their files
    folders = [Path(f) for f in args.packages or site.getsitepackages()]
    build_corpus(args.out, folders, args.seed, (args.chat_rows, args.dialogue_rows), args.max_package_bytes)


def run_train(args: argparse.Namespace) -> None:
    from embedded_training.model import Shape
    from embedded_training.train import Recipe, train

    fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe)}
    shape = {k: getattr(args, k) for k in MODEL_SHAPE}
    train(args.corpus, args.out, Shape(**shape), Recipe(**fields), args.device, args.seconds)


def run_evaluate(args: argparse.Namespace) -> None:
    from embedded_training.card import measure

    measure(args.corpus, args.checkpoint, args.device, args.dtype)


def run_install(args: argparse.Namespace) -> None:
    from embedded_training.card import install

    install(args.corpus, args.checkpoint, args.out, args.note)


def run_draft(args: argparse.Namespace) -> None:
    from embedded_training.draft_stages import CPU_SIZES, TEXT_SIZES, RowSizes, train_on_corpus, train_on_text
    from embedded_training.draft_train import DraftRecipe

    recipe = DraftRecipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(DraftRecipe)})
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(RowSizes)}
    given = {name: value for name, value in given.items() if value is not None}
    defaults = CPU_SIZES if args.device == "cpu" else TEXT_SIZES if args.text else RowSizes()
    sizes = dataclasses.replace(defaults, **given)
    train, source = (train_on_text, args.text) if args.text else (train_on_corpus, args.corpus)
    size = (args.n_layers, args.hidden_dim)
    train(args.target, source, args.out, size, sizes, recipe, args.device, args.wall_seconds)
    print(f"draft written to {args.out}; serve it with --speculative-draft-model-path {args.out}")


def run_evaluate_draft(args: argparse.Namespace) -> None:
    from embedded_training.draft_stages import measure_on_corpus, measure_on_text

    measure, source = (measure_on_text, args.text) if args.text else (measure_on_corpus, args.corpus)
    measure(args.target, args.checkpoint, source, args.device, args.dtype, args.limit)
    print(f"measurements written to {args.checkpoint / 'measurements.json'}")


def run_install_draft(args: argparse.Namespace) -> None:
    from embedded_training.card import install_draft

    install_draft(args.checkpoint, args.out, args.note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    _add_corpus(stages.add_parser("corpus", help="build tokenizer, token arrays and tests"))
    _add_train(stages.add_parser("train", help="train and export"))
    evaluate = stages.add_parser("evaluate", help="measure an exported checkpoint")
    evaluate.add_argument("--corpus", type=Path, required=True, help="what the stage `corpus` wrote")
    evaluate.add_argument("--checkpoint", type=Path, required=True, help="folder that `train` wrote")
    _add_device(evaluate, "cpu")
    _add_dtype(evaluate)
    evaluate.set_defaults(run=run_evaluate)
    install = stages.add_parser("install", help="put checkpoint, tokenizer, record and model card into a folder")
    install.add_argument("--corpus", type=Path, required=True, help="what the stage `corpus` wrote")
    install.add_argument("--checkpoint", type=Path, required=True, help="must hold the measurements of `evaluate`")
    install.add_argument("--out", type=Path, required=True, help="folder to write")
    install.add_argument("--note", default="", help="what the card must say of these weights besides the measurements")
    install.set_defaults(run=run_install)
    _add_draft(stages.add_parser("draft", help="train an EAGLE draft for a target"))
    _add_evaluate_draft(stages.add_parser("evaluate-draft", help="measure a draft's acceptance length"))
    install_draft = stages.add_parser("install-draft", help="put a draft, its record and its card beside its target")
    install_draft.add_argument("--checkpoint", type=Path, required=True, help="with the measurements of evaluate-draft")
    install_draft.add_argument(
        "--out", type=Path, default=EMBEDDED, help="folder of the target (default: the embedded model)"
    )
    install_draft.add_argument("--note", default="", help="what the card must say besides the measurements")
    install_draft.set_defaults(run=run_install_draft)
    args = parser.parse_args(["draft" if argument == "--draft" else argument for argument in sys.argv[1:]])
    from slipstream.errors import SlipstreamError

    try:
        _check_device(getattr(args, "device", None))
        args.run(args)
    except SlipstreamError as error:  # it says what to change
        parser.exit(1, f"{parser.prog}: {error}\n")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--packages", nargs="*", help="site-packages folders to read (default: this interpreter's)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is drawn (default: %(default)s)")
    parser.add_argument("--chat-rows", type=int, default=280_000, help="rows of questions (default: %(default)s)")
    parser.add_argument("--dialogue-rows", type=int, default=4_000, help="rows of dialogues (default: %(default)s)")
    most = "bytes taken of one package (default: %(default)s)"
    parser.add_argument("--max-package-bytes", type=int, default=16_000_000, help=most)
    parser.set_defaults(run=run_corpus)


def _add_train(parser: argparse.ArgumentParser) -> None:
    from embedded_training.train import Recipe

    parser.add_argument("--corpus", type=Path, required=True, help="what the stage `corpus` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    _add_device(parser, "cuda")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop a trial early (default: no limit)")
    recipe = parser.add_argument_group("recipe", "see Recipe in embedded_training/train.py")
    for field in dataclasses.fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        recipe.add_argument(flag, type=type(field.default), default=field.default, help="default: %(default)s")
    shape = parser.add_argument_group("shape", "keys of the model's params.json")
    for name, default in MODEL_SHAPE.items():
        kind = (lambda text: text == "true") if isinstance(default, bool) else type(default)
        shape.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help="default: %(default)s")
    parser.set_defaults(run=run_train)


def _add_draft(parser: argparse.ArgumentParser) -> None:
    from embedded_training.draft_options import add_recipe, add_sizes

    _add_pair_and_text(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the draft into")
    _add_device(parser, "cuda")
    parser.add_argument("--n-layers", type=int, default=2, help="layers of the draft (default: %(default)s)")
    parser.add_argument(
        "--hidden-dim", type=int, help="width of the feed-forward part (default: with --text the target's)"
    )
    limit = "limit on writing, compiling and training (default: none)"
    parser.add_argument("--wall-seconds", type=float, default=math.inf, help=limit)
    add_recipe(parser)
    add_sizes(parser)
    parser.set_defaults(run=run_draft)


def _add_evaluate_draft(parser: argparse.ArgumentParser) -> None:
    _add_pair_and_text(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the draft; gets measurements.json")
    _add_device(parser, "cpu")
    _add_dtype(parser)
    parser.add_argument("--limit", type=int, help="prompts of each kind (default: 100)")
    parser.set_defaults(run=run_evaluate_draft)


def _add_pair_and_text(parser: argparse.ArgumentParser) -> None:
    of_target = "folder of the target (default: the embedded model)"
    parser.add_argument("--target", type=Path, default=EMBEDDED, help=of_target)
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--corpus", type=Path, help="what the stage `corpus` wrote, for the embedded model")
    kinds.add_argument(
        "--text", type=Path, nargs="+", help="files and folders of text, and .jsonl files of conversations"
    )


def _add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--device", default=default, choices=("cuda", "cpu"), help="default: %(default)s")


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    text = "arithmetic, not storage (default: %(default)s)"
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help=text)


def _check_device(device: str | None) -> None:
    """Raises ConfigError where there is no such device."""
    if device == "cuda":
        import torch

        from slipstream.errors import ConfigError

        if not torch.cuda.is_available():
            raise ConfigError("PyTorch finds no NVIDIA GPU here: give --device cpu, for a trial on a tiny model")


if __name__ == "__main__":
    main()
