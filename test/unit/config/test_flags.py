"""A field is a flag: parsing, limits, unknown flags, secrets."""

import argparse

import pytest

from slipstream.config.flags import FlagParser, add_flags, check_fields, from_namespace
from slipstream.config.options import LaunchOptions
from slipstream.errors import ConfigError


def parse(*args: str) -> LaunchOptions:
    parser = FlagParser()
    add_flags(parser, LaunchOptions)
    return from_namespace(LaunchOptions, parser.parse_args(list(args)))


def test_no_flags_give_the_defaults() -> None:
    assert parse() == LaunchOptions()


def test_each_kind_of_value_is_read() -> None:
    options = parse("--port", "8000", "--context-length", "4096", "--mem-fraction-static=0.5", "--disable-radix-cache",
                    "--max-total-tokens", "auto", "--model-path", "m", "--log-level", "debug")  # fmt: skip
    assert (options.port, options.context_length, options.mem_fraction_static) == (8000, 4096, 0.5)
    assert (options.disable_radix_cache, options.max_total_tokens, options.model_path) == (True, "auto", "m")
    assert options.log_level == "debug"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prot", "1"], ["--prot", "did you mean --port"]),
        (["--port", "many"], ["--port", "'many' is not a whole number"]),
        (["--mem-fraction-static", "half"], ["'half' is not a number"]),
        (["--device", "tpu"], ["'tpu' is not one of: auto, cpu, cuda"]),
        (["--max-run", "3"], ["unknown flag --max-run"]),
    ],
)
def test_a_bad_flag_is_named_with_what_to_do(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(*args)
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"port": 70000}, "--port is 70000; it must be at most 65535"),
        ({"max_running_requests": 0}, "--max-running-requests is 0; it must be at least 1"),
        ({"dtype": "int3"}, "--dtype is 'int3'; choose one of"),
        ({"watchdog_timeout_s": float("nan")}, "--watchdog-timeout-s is nan; it must be a finite number"),
        ({"mem_fraction_static": float("inf")}, "--mem-fraction-static is inf; it must be a finite number"),
        ({"host": ""}, "--host is empty; give it a value or leave it out"),
        ({"max_running_requests": 10**8}, "--max-running-requests is 100000000; it must be at most 65536"),
        ({"mem_fraction_static": 1.5}, "--mem-fraction-static is 1.5; it must be at most 0.99"),
    ],
)
def test_limits_hold_for_options_made_in_python_too(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_fields(LaunchOptions(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"port": "8000"}, "--port is '8000'; it must be a whole number"),
        ({"port": True}, "--port is True; it must be a whole number"),
        ({"speculative_num_steps": 3.5}, "--speculative-num-steps is 3.5; it must be a whole number or 'auto'"),
        ({"speculative_num_draft_tokens": None}, "--speculative-num-draft-tokens is None; it must be a whole number"),
        ({"simulate_acceptance_length": "2"}, "--simulate-acceptance-length is '2'; it must be a number"),
        ({"simulate_acceptance_pattern": [1, 2]}, r"--simulate-acceptance-pattern is \[1, 2\]; it must be a text"),
        ({"speculative_algorithm": None}, "--speculative-algorithm is None; it must be a text"),
        ({"speculative_use_rejection_sampling": "yes"}, "is 'yes'; it must be True or False"),
        ({"disable_radix_cache": 1}, "--disable-radix-cache is 1; it must be True or False"),
    ],
)
def test_options_made_in_python_must_be_of_the_right_kind(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_fields(LaunchOptions(**changes))  # type: ignore[arg-type]


def test_a_whole_number_is_a_number_and_unset_options_may_stay_unset() -> None:
    check_fields(LaunchOptions(watchdog_timeout_s=3, simulate_acceptance_length=None, max_total_tokens="auto"))


def test_flags_of_the_server_alone_can_be_left_out() -> None:
    parser = FlagParser()
    add_flags(parser, LaunchOptions, server=False)
    page = parser.format_help()
    assert "--model-path" in page and "--port" not in page and "--api-key" not in page
    assert from_namespace(LaunchOptions, parser.parse_args(["--dtype", "float32"])) == LaunchOptions(dtype="float32")


def test_every_field_has_help_and_the_help_page_prints() -> None:
    parser = FlagParser()
    add_flags(parser, LaunchOptions)
    page = parser.format_help()
    for name, field in LaunchOptions.__dataclass_fields__.items():
        assert field.metadata["help"]
        assert "--" + name.replace("_", "-") in page
    assert isinstance(parser, argparse.ArgumentParser)


def test_flags_of_other_servers_are_told_apart_from_typos(capsys: pytest.CaptureFixture[str]) -> None:
    parser = FlagParser(prog="p", not_yet={"--tp": "one device"})
    parser.add_argument("--dtype")
    for args, said in (
        (["--tp-size=2"], "--tp-size is not in yet: one device"),
        (["--dtyp=x"], "did you mean --dtype?"),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args(args)
        assert said in capsys.readouterr().err


def test_a_value_that_stands_alone_is_told_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    parser = FlagParser(prog="p")
    parser.add_argument("--model-path")
    with pytest.raises(SystemExit):
        parser.parse_args(["/tmp/model"])
    assert "did you mean --model-path /tmp/model?" in capsys.readouterr().err
