"""Incremental text against the libraries' own decode of the whole sequence."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from sentencepiece import SentencePieceProcessor

from slipstream.tokenizer.detokenizer import ContextDetokenizer, PieceDetokenizer, PieceTable
from slipstream.tokenizer.hf import HfTokenizer
from slipstream.tokenizer.sentencepiece import SentencePieceTokenizer
from slipstream.tokenizer.tekken import TekkenTokenizer
from slipstream.tokenizer.text_tokenizer import TextTokenizer, decode

SPM_FILE = "mistral_instruct_tokenizer_240323.model.v3"
with_shared_fixtures = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
numbers = st.lists(st.integers(0, 10**6), max_size=30)
some_text = st.text(st.sampled_from("ab é€東😀\n<[/"), max_size=20)


def stream(tokenizer: TextTokenizer, ids: list[int], **options: Any) -> tuple[str, list[str]]:
    """The whole text and the pieces it came in."""
    detokenizer = tokenizer.detokenizer(**options)
    pieces = [detokenizer.push(i) for i in ids] + [detokenizer.flush()]
    return "".join(pieces), pieces


@pytest.fixture(scope="module")
def tekken(tekken_path: Path) -> TekkenTokenizer:
    return TekkenTokenizer(str(tekken_path))


@pytest.fixture(scope="module")
def tekken_library(tekken_path: Path) -> Any:
    return MistralTokenizer.from_file(str(tekken_path)).instruct_tokenizer.tokenizer


@pytest.fixture(scope="module")
def spm(mistral_data: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(str(mistral_data / SPM_FILE))


@pytest.fixture(scope="module")
def spm_library(mistral_data: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(mistral_data / SPM_FILE))


@pytest.fixture(scope="module")
def byte_level(byte_level_folder: Path) -> HfTokenizer:
    return HfTokenizer(str(byte_level_folder))


@pytest.fixture(scope="module")
def metaspace(metaspace_folder: Path) -> HfTokenizer:
    return HfTokenizer(str(metaspace_folder))


@given(numbers, st.booleans())
@with_shared_fixtures
def test_tekken_equals_the_librarys_decode(
    tekken: TekkenTokenizer, tekken_library: Any, values: list[int], skip: bool
) -> None:
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy as Policy

    ids = [value % tekken.vocab_size for value in values]
    expected = tekken_library.decode(ids, Policy.IGNORE if skip else Policy.KEEP)
    assert stream(tekken, ids, skip_special_tokens=skip)[0] == expected


@given(numbers, st.booleans())
@with_shared_fixtures
def test_sentencepiece_equals_the_librarys_decode(
    spm: SentencePieceTokenizer, spm_library: SentencePieceProcessor, values: list[int], low: bool
) -> None:
    ids = [value % (800 if low else spm.vocab_size) for value in values]  # ids below 771 are control and byte tokens
    assert stream(spm, ids)[0] == spm_library.decode(ids)


@given(numbers, st.booleans())
@with_shared_fixtures
def test_hf_byte_level_equals_the_librarys_decode(
    byte_level: HfTokenizer, byte_level_folder: Path, values: list[int], skip: bool
) -> None:
    library = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    ids = [value % byte_level.vocab_size for value in values]
    assert stream(byte_level, ids, skip_special_tokens=skip)[0] == library.decode(ids, skip_special_tokens=skip)


@given(some_text, st.booleans())
@with_shared_fixtures
def test_hf_metaspace_equals_the_librarys_decode(
    metaspace: HfTokenizer, metaspace_folder: Path, text: str, skip: bool
) -> None:
    library = tokenizers.Tokenizer.from_file(str(metaspace_folder / "tokenizer.json"))
    ids = library.encode(text).ids
    assert stream(metaspace, ids, skip_special_tokens=skip)[0] == library.decode(ids, skip_special_tokens=skip)


@given(st.binary(max_size=12))
@with_shared_fixtures
def test_hf_metaspace_loses_only_the_bad_bytes_of_a_run(metaspace: HfTokenizer, data: bytes) -> None:
    """The library turns a run of byte tokens into U+FFFD as a whole; a stream cannot wait for the run's end."""
    ids = [3 + byte for byte in data]  # <0x00> has id 3
    table = PieceTable([bytes([i]) for i in range(256)], frozenset(), replace_each_byte=True)
    expected = decode(PieceDetokenizer(table, skip_special_tokens=True, continues=True), data)
    assert stream(metaspace, ids, context=[3])[0] == expected
    if b"\xff" not in data and "\ufffd" not in data.decode(errors="replace"):
        assert expected == data.decode()


@given(some_text)
@with_shared_fixtures
def test_no_piece_has_half_a_character(
    tekken: TekkenTokenizer, spm: SentencePieceTokenizer, byte_level: HfTokenizer, metaspace: HfTokenizer, text: str
) -> None:
    for tokenizer in (tekken, spm, byte_level, metaspace):
        whole, pieces = stream(tokenizer, tokenizer.encode(text))
        assert whole == text
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=16))
def test_python_and_the_pieces_agree_on_invalid_bytes(data: bytes) -> None:
    table = PieceTable([bytes([i]) for i in range(256)], frozenset())
    assert decode(PieceDetokenizer(table, skip_special_tokens=True, continues=False), data) == data.decode(
        errors="replace"
    )


def test_an_unfinished_character_waits_and_is_flushed_as_a_replacement(byte_tokenizer: Any) -> None:
    detokenizer = byte_tokenizer.detokenizer()
    euro = "€".encode()
    assert [detokenizer.push(b) for b in euro] == ["", "", "€"]
    assert detokenizer.push(euro[0]) == "" and detokenizer.pending
    assert detokenizer.flush() == "\ufffd" and not detokenizer.pending


def test_a_continuation_keeps_its_leading_space(spm: SentencePieceTokenizer) -> None:
    ids = spm.encode("Once upon a time")
    assert stream(spm, ids[1:])[0] == "Once upon a time"
    head, tail = ids[:4], ids[4:]
    assert stream(spm, head)[0] + stream(spm, tail, context=head)[0] == "Once upon a time"
    assert stream(spm, tail)[0] == stream(spm, tail, context=head)[0].removeprefix(" ")


def test_ids_past_the_vocabulary_have_no_text(tekken: TekkenTokenizer, spm: SentencePieceTokenizer) -> None:
    for tokenizer in (tekken, spm):
        assert stream(tokenizer, [tokenizer.vocab_size + 5])[0] == ""
        assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""


@given(st.text(st.sampled_from("abc .,ü"), max_size=30))
def test_decoding_with_context_serves_other_vocabularies(text: str) -> None:
    pieces = ["[UNK]", *"abcü.,", *(f"##{c}" for c in "abcü"), "ab", "##bc"]
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    ids = library.encode(text).ids
    assert decode(ContextDetokenizer(library.decode), ids) == library.decode(ids)
    for i in range(1, len(ids)):
        rest = decode(ContextDetokenizer(library.decode, ids[:i]), ids[i:])
        assert library.decode(ids[:i]) + rest == library.decode(ids)
