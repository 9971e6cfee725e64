"""The names of the files decide which layout is read; flags override; what is missing is named."""

import pytest

from slipstream.hf_transformers.layout import choose_layout, missing_shards, weight_files

NATIVE = ["params.json", "consolidated.safetensors", "tekken.json"]
HF = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def chosen(names: list[str], load_format: str = "auto", config_format: str = "auto") -> tuple[str, str]:
    """("configuration file", "stem of the weights")"""
    choice, problems = choose_layout(names, load_format, config_format)
    assert choice is not None and problems == []
    return choice.config.config_file, choice.weights.weights_stem if choice.weights else ""


def refused(names: list[str], load_format: str = "auto", config_format: str = "auto") -> str:
    choice, problems = choose_layout(names, load_format, config_format)
    assert choice is None
    return "\n".join(problems)


@pytest.mark.parametrize(
    ("names", "load_format", "config_format", "expected"),
    [
        (NATIVE, "auto", "auto", ("params.json", "consolidated")),
        (HF, "auto", "auto", ("config.json", "model")),
        (NATIVE + HF, "auto", "auto", ("params.json", "consolidated")),
        (NATIVE + HF, "hf", "auto", ("config.json", "model")),
        (NATIVE + HF, "auto", "hf", ("config.json", "model")),
        (NATIVE + HF, "mistral", "auto", ("params.json", "consolidated")),
        (NATIVE + HF, "mistral", "hf", ("config.json", "consolidated")),
        (NATIVE + HF, "hf", "mistral", ("params.json", "model")),
        (["config.json", *NATIVE[1:]], "mistral", "hf", ("config.json", "consolidated")),
        ([*HF, "params.json"], "auto", "auto", ("config.json", "model")),  # half a native layout does not count
        ([*NATIVE, "config.json"], "auto", "auto", ("params.json", "consolidated")),
        ([*HF, "consolidated.safetensors"], "auto", "auto", ("config.json", "model")),
        (["params.json", "consolidated.safetensors.index.json"], "auto", "auto", ("params.json", "consolidated")),
        (["params.json", "consolidated.00.safetensors"], "auto", "auto", ("params.json", "consolidated")),
        (["params.json"], "dummy", "auto", ("params.json", "")),
        (["config.json"], "dummy", "auto", ("config.json", "")),
        (["params.json", "config.json"], "dummy", "hf", ("config.json", "")),
    ],
)
def test_choice(names: list[str], load_format: str, config_format: str, expected: tuple[str, str]) -> None:
    assert chosen(names, load_format, config_format) == expected


@pytest.mark.parametrize(
    ("names", "load_format", "reason"),
    [
        (NATIVE, "auto", "params.json and consolidated.safetensors"),
        (
            NATIVE + HF,
            "auto",
            "params.json and consolidated.safetensors; config.json and model*.safetensors are there too and are not"
            " read",
        ),
        (
            NATIVE + HF,
            "hf",
            "config.json and model*.safetensors (2 files), as --load-format hf says; params.json and "
            "consolidated*.safetensors are there too and are not read",
        ),
        (["params.json"], "dummy", "params.json, as --load-format dummy says"),
    ],
)
def test_the_reason_is_a_clause(names: list[str], load_format: str, reason: str) -> None:
    choice, _ = choose_layout(names, load_format, "auto")
    assert choice is not None
    files = weight_files(names, choice.weights.weights_stem) if choice.weights else []
    assert choice.reason(files) == reason


def test_random_weights_are_an_offer_where_there_are_none() -> None:
    assert "--load-format dummy, random weights, needs only the configuration" in refused(["params.json"])
    for names, load_format in ((["params.json", "model.safetensors"], "auto"), (["config.json"], "mistral")):
        assert ("--load-format dummy" in refused(names, load_format)) == (names == ["config.json"])
    assert "random" not in refused([], "dummy")


def test_hints_for_a_draft_name_the_flags_of_a_draft() -> None:
    _, problems = choose_layout(["params.json"], "auto", "auto", "draft")
    assert "--speculative-draft-load-format dummy, random weights" in problems[0]
    _, problems = choose_layout(["params.json", "model.safetensors"], "auto", "auto", "draft")
    assert not any("--config-format" in problem for problem in problems), "there is no such flag for a draft"
    choice, _ = choose_layout(["params.json"], "dummy", "auto", "draft")
    assert choice is not None and choice.flags == "--speculative-draft-load-format dummy"


def test_what_is_missing_of_each_layout() -> None:
    text = refused(["params.json", "model.safetensors"])
    assert "params.json + consolidated*.safetensors (consolidated*.safetensors missing)" in text
    assert "config.json + model*.safetensors (config.json missing)" in text
    assert "files seen: model.safetensors, params.json" in text
    assert "--config-format mistral --load-format hf reads them together" in text
    text = refused([])
    assert text.count("(all missing)") == 2 and "files seen: none" in text


def test_a_flag_leaves_one_layout_to_complain_about() -> None:
    text = refused(NATIVE, "hf")
    assert "config.json + model*.safetensors (all missing)" in text and "consolidated*" not in text
    text = refused(HF, "mistral", "hf")
    assert "config.json + consolidated*.safetensors (consolidated*.safetensors missing)" in text
    assert "(params.json missing)" in refused(["config.json"], "dummy", "mistral")


@pytest.mark.parametrize("name", ["consolidated.00.pth", "pytorch_model-00001-of-00002.bin", "model.pt"])
def test_pickled_weights(name: str) -> None:
    text = refused(["params.json", "config.json", name])
    assert f"{name} holds pickled weights; only safetensors files are read" in text and "save_file" in text


def test_other_formats() -> None:
    assert "GGUF" in refused(["model-Q4.gguf"])


def test_long_listings_are_cut() -> None:
    assert len(refused([f"{number}" * 50 for number in range(10_000)])) < 5000


def test_weight_files_of_a_stem() -> None:
    names = ["model.safetensors", "modeling.safetensors", "model-1-of-2.safetensors", "model.safetensors.index.json"]
    assert weight_files([*names, "model.bin", "xmodel.safetensors"], "model") == [names[2], names[0]]


def test_missing_shards_are_few_lines_at_once() -> None:
    assert len(missing_shards(["m-1-of-99999999999999999999.safetensors"])) == 20
    many = [f"m{number}-1-of-99999.safetensors" for number in range(20_000)]
    assert len(missing_shards(many)) == 20
