"""Makes the small model that ships in `slipstream/embedded`, in stages that can run on different machines.

    corpus     here: read the standard library and installed packages, train the tokenizer, write token arrays
    train      there: needs torch, numpy and safetensors only; writes params.json and consolidated.safetensors
    evaluate   anywhere: both measurements on the exported bf16 weights
    install    here: put checkpoint, tokenizer, record and model card into one folder

    draft             there: train an EAGLE draft on a finished target (`--draft` is the same)
    evaluate-draft    anywhere: acceptance length of a target and its draft

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

EMBEDDED = Path(__file__).resolve().parent.parent / "python" / "slipstream" / "embedded"

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
    from embedded_training.draft_stages import RowSizes, train_on_corpus
    from embedded_training.draft_train import DraftRecipe

    recipe = DraftRecipe(**{f.name: getattr(args, f.name) for f in dataclasses.fields(DraftRecipe)})
    sizes = RowSizes(**{f.name: getattr(args, f.name) for f in dataclasses.fields(RowSizes)})
    size = (args.n_layers, args.hidden_dim)
    train_on_corpus(args.target, args.corpus, args.out, size, sizes, recipe, args.device, args.wall_seconds)


def run_evaluate_draft(args: argparse.Namespace) -> None:
    from embedded_training.draft_stages import measure_draft

    measure_draft(args.target, args.checkpoint, args.corpus, args.device, args.dtype, args.limit)


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
    args = parser.parse_args(["draft" if argument == "--draft" else argument for argument in sys.argv[1:]])
    args.run(args)


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
    from embedded_training.draft_stages import RowSizes
    from embedded_training.draft_train import DraftRecipe

    parser.add_argument("--target", type=Path, default=EMBEDDED, help="folder of the target")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--n-layers", type=int, default=2)
    parser.add_argument("--hidden-dim", type=int, default=1472)
    parser.add_argument("--wall-seconds", type=float, default=math.inf, help="limit on writing, compiling and training")
    for field in (*dataclasses.fields(DraftRecipe), *dataclasses.fields(RowSizes)):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    parser.set_defaults(run=run_draft)


def _add_evaluate_draft(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=Path, default=EMBEDDED, help="folder of the target")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the draft")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="arithmetic, not storage")
    parser.add_argument("--limit", type=int, help="measure on fewer prompts of each kind")
    parser.set_defaults(run=run_evaluate_draft)


if __name__ == "__main__":
    main()
