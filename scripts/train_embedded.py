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
    from embedded_training.draft_stages import TEXT_SIZES, RowSizes, train_on_corpus, train_on_text
    from embedded_training.draft_train import DraftRecipe

    recipe = DraftRecipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(DraftRecipe)})
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(RowSizes)}
    given = {name: value for name, value in given.items() if value is not None}
    sizes = dataclasses.replace(TEXT_SIZES if args.text else RowSizes(), **given)
    train, source = (train_on_text, args.text) if args.text else (train_on_corpus, args.corpus)
    size = (args.n_layers, args.hidden_dim)
    train(args.target, source, args.out, size, sizes, recipe, args.device, args.wall_seconds)


def run_evaluate_draft(args: argparse.Namespace) -> None:
    from embedded_training.draft_stages import measure_on_corpus, measure_on_text

    measure, source = (measure_on_text, args.text) if args.text else (measure_on_corpus, args.corpus)
    measure(args.target, args.checkpoint, source, args.device, args.dtype, args.limit)


def run_install_draft(args: argparse.Namespace) -> None:
    from embedded_training.card import install_draft

    install_draft(args.checkpoint, args.out, args.note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    _add_corpus(stages.add_parser("corpus", help="build tokenizer, token arrays and tests"))
    _add_train(stages.add_parser("train", help="train and export"))
    evaluate = stages.add_parser("evaluate", help="measure an exported checkpoint")
    evaluate.add_argument("--corpus", type=Path, required=True)
    evaluate.add_argument("--checkpoint", type=Path, required=True)
    evaluate.add_argument("--device", default="cpu")
    evaluate.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="arithmetic, not storage")
    evaluate.set_defaults(run=run_evaluate)
    install = stages.add_parser("install", help="put checkpoint, tokenizer, record and model card into a folder")
    install.add_argument("--corpus", type=Path, required=True)
    install.add_argument("--checkpoint", type=Path, required=True, help="must hold the measurements of `evaluate`")
    install.add_argument("--out", type=Path, required=True)
    install.add_argument("--note", default="", help="what the card must say of these weights besides the measurements")
    install.set_defaults(run=run_install)
    _add_draft(stages.add_parser("draft", help="train an EAGLE draft for a target"))
    _add_evaluate_draft(stages.add_parser("evaluate-draft", help="measure a draft's acceptance length"))
    install_draft = stages.add_parser("install-draft", help="put a draft, its record and its card beside its target")
    install_draft.add_argument("--checkpoint", type=Path, required=True, help="with the measurements of evaluate-draft")
    install_draft.add_argument("--out", type=Path, default=EMBEDDED, help="folder of the target, made by `install`")
    install_draft.add_argument("--note", default="", help="what the card must say besides the measurements")
    install_draft.set_defaults(run=run_install_draft)
    args = parser.parse_args(["draft" if argument == "--draft" else argument for argument in sys.argv[1:]])
    from slipstream.errors import SlipstreamError

    try:
        args.run(args)
    except SlipstreamError as error:  # it says what to change
        parser.exit(1, f"{parser.prog}: {error}\n")


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packages", nargs="*", help="site-packages folders to read (default: this interpreter's)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--chat-rows", type=int, default=280_000)
    parser.add_argument("--dialogue-rows", type=int, default=4_000)
    parser.add_argument("--max-package-bytes", type=int, default=16_000_000)
    parser.set_defaults(run=run_corpus)


def _add_train(parser: argparse.ArgumentParser) -> None:
    from embedded_training.train import Recipe

    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop a trial early")
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    for name, default in MODEL_SHAPE.items():
        kind = (lambda text: text == "true") if isinstance(default, bool) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    parser.set_defaults(run=run_train)


def _add_draft(parser: argparse.ArgumentParser) -> None:
    from embedded_training.draft_stages import TEXT_SIZES, RowSizes
    from embedded_training.draft_train import DraftRecipe

    _add_pair_and_text(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--n-layers", type=int, default=2)
    parser.add_argument(
        "--hidden-dim", type=int, help="width of the feed-forward part (default: with --text the target's)"
    )
    parser.add_argument("--wall-seconds", type=float, default=math.inf, help="limit on writing, compiling and training")
    for field in dataclasses.fields(DraftRecipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    for field in dataclasses.fields(RowSizes):
        defaults = f"default: {field.default} with --corpus, {getattr(TEXT_SIZES, field.name)} with --text"
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help=defaults)
    parser.set_defaults(run=run_draft)


def _add_evaluate_draft(parser: argparse.ArgumentParser) -> None:
    _add_pair_and_text(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the draft")
    parser.add_argument("--device", default="cpu", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="arithmetic, not storage")
    parser.add_argument("--limit", type=int, help="measure on fewer prompts of each kind")
    parser.set_defaults(run=run_evaluate_draft)


def _add_pair_and_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, default=EMBEDDED, help="folder of the target")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--corpus", type=Path, help="what the stage `corpus` wrote, for the embedded model")
    kinds.add_argument(
        "--text", type=Path, nargs="+", help="files and folders of text, and .jsonl files of conversations"
    )


if __name__ == "__main__":
    main()
