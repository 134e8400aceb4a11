from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from selfplay_ray.config import RunConfig
from selfplay_ray.config_sources import config_toml, load_config
from selfplay_ray.errors import ConfigError


class GameConfig(RunConfig):
    """A game."""

    game: Literal["nim", "poker"] = "nim"
    """Which game."""
    share: float | None = Field(None, ge=0)
    """Share of 100% the house takes."""
    prices: dict[str, int] = Field(default_factory=dict)
    """Too much for a flag."""


def load(*argv: str) -> GameConfig:
    return load_config(GameConfig, argv, "game")


def complaints(*argv: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        load(*argv)
    return str(raised.value).splitlines()


@pytest.fixture
def toml(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return str(path)

    return write


def test_defaults_then_file_then_flags(toml):
    file = toml("num_steps = 5\nbatch_size = 4\n[prices]\nfold = 1")
    assert load() == GameConfig()
    assert load("--config", file) == GameConfig(num_steps=5, batch_size=4, prices={"fold": 1})
    assert load("--num-steps", "7", "--config", file).num_steps == 7
    assert load("--num-steps", "7", "--config", file).batch_size == 4


def test_flags_of_every_kind():
    config = load(
        "--share", "0.5", "--game", "poker", "--verbose", "--output-dir", "here", "--lora-layers", "-1"
    )
    assert (config.share, config.game, config.verbose) == (0.5, "poker", True)
    assert (config.output_dir, config.lora_layers) == (Path("here"), -1)
    assert load("--verbose", "--no-verbose").verbose is False


def test_a_flag_may_take_several(toml):
    urls = ("http://one:8000/v1", "https://two/v1")
    assert load("--endpoints", *urls, "--engines", "0").endpoints == urls
    assert load("--config", toml(config_toml(load("--endpoints", *urls)))).endpoints == urls
    assert complaints("--endpoints") == ["--endpoints: expected at least one argument"]


@pytest.mark.parametrize("flag", ["--max-staleness", "--max-policy-lag"])
def test_the_staleness_limit_goes_by_two_names(flag: str):
    assert load(flag, "3").max_staleness == 3


@pytest.mark.parametrize("flag", ["--kl-coefficient", "--kl-coef"])
def test_so_does_the_kl_coefficient(flag: str):
    assert load(flag, "0.3").kl_coefficient == 0.3


def test_each_bad_flag_gets_a_sentence_with_its_value_and_what_is_allowed():
    assert complaints("--batch-size", "0", "--num-steps", "many", "--game", "go") == [
        "--num-steps many is not possible: it must be a valid integer",
        "--batch-size 0 is not possible: it must be greater than or equal to 1",
        "--game go is not possible: it must be 'nim' or 'poker'",
    ]


def test_unknown_flags_say_which_was_meant():
    assert complaints("--num-step", "3", "--zzz=1") == [
        "unknown flag --num-step; did you mean --num-steps?",
        "unknown flag --zzz",
    ]
    assert complaints("--max-policy-lags", "3") == [
        "unknown flag --max-policy-lags; did you mean --max-policy-lag?"
    ]
    assert complaints("nim") == ["unexpected argument 'nim'; game --help lists what there is"]
    assert complaints("--num-steps") == ["--num-steps: expected one argument"]


def test_bad_keys_and_values_in_a_file_name_the_file(toml):
    file = toml('num_step = 3\nlr = "fast"\n')
    assert sorted(complaints("--config", file)) == [
        f"lr = 'fast' in {file} is not possible: it must be a valid number",
        f"unknown key num_step in {file}; did you mean num_steps?",
    ]


def test_a_file_that_is_missing_or_no_toml(toml, tmp_path: Path):
    missing = tmp_path / "none.toml"
    assert complaints("--config", str(missing)) == [
        f"configuration file {missing} can't be read: No such file or directory"
    ]
    file = toml("num_steps = \n")
    (sentence,) = complaints("--config", file)
    assert sentence.startswith(f"configuration file {file} is not valid TOML: ")


def test_dry_run_prints_what_config_takes_again(capsys, toml):
    with pytest.raises(SystemExit) as stop:
        load("--share", "0.25", "--num-steps", "3", "--dry-run")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["num_steps"] == 3
    assert load("--config", toml(printed)) == GameConfig(share=0.25, num_steps=3)


def test_help_shows_the_docstrings_and_defaults(capsys):
    with pytest.raises(SystemExit):
        load("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--game nim|poker Which game. (default: nim)" in printed
    assert "Share of 100% the house takes." in printed
    assert "--prices" not in printed


@given(
    st.builds(
        GameConfig,
        name=st.from_regex(r"[A-Za-z0-9._-]*", fullmatch=True),
        seed=st.integers(0, 2**62),
        lr=st.floats(1e-30, 1e30),
        game=st.sampled_from(["nim", "poker"]),
        share=st.none() | st.floats(0, 1),
        model_path=st.text(st.characters(blacklist_categories=["Cs"])),
        prices=st.dictionaries(st.text(max_size=5), st.integers(-(2**62), 2**62), max_size=3),
    )
)
def test_any_configuration_survives_being_written(config: GameConfig):
    assert GameConfig.model_validate(tomllib.loads(config_toml(config))) == config


def test_a_resumed_run_has_its_own_settings_but_for_the_flags(tmp_path: Path):
    run = tmp_path / "one"
    run.mkdir()
    (run / "config.toml").write_text(config_toml(GameConfig(name="one", seed=5, game="poker", num_steps=7)))
    config = load("--resume", str(run), "--num-steps", "9")
    assert (config.seed, config.game, config.num_steps) == (5, "poker", 9)
    assert (config.resume, config.output_dir, config.name) == (run, tmp_path, "one")
    assert "resume" not in tomllib.loads(config_toml(config))


@pytest.mark.parametrize("where", [".", "..", "../two/../one"])
def test_a_run_is_resumed_by_another_name_of_its_folder(tmp_path: Path, monkeypatch, where: str):
    run = tmp_path / "one"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_text("num_steps = 5\n")
    (tmp_path / "two").mkdir()
    monkeypatch.chdir(run / "checkpoints" if where == ".." else run)
    config = load("--resume", where)
    assert (config.name, config.output_dir.resolve()) == ("one", tmp_path.resolve())
    assert config.resume is not None
    assert config.resume.name == "one"


def test_a_run_that_cannot_be_resumed_is_named_with_those_that_can(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text("")
    missing = tmp_path / "tow"
    assert complaints("--resume", str(missing)) == [
        f"there is no run to resume at {missing}; there are one, two"
    ]
    run = str(tmp_path / "one")
    for flags in (["--name", "x"], ["--output-dir", "y"], ["--config", f"{run}/config.toml"]):
        (complaint,) = complaints("--resume", run, *flags)
        assert complaint == f"{flags[0]} doesn't go with --resume: the run has its own already"
