"""cluster.yaml is what Ray's own launcher accepts, and is fenced in as the README promises."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).parent.parent / "cluster.yaml"
# Ray's schema lets anything pass in `provider`; these are the keys its local provider reads.
LOCAL_PROVIDER_KEYS = {"type", "head_ip", "worker_ips", "use_internal_ips", "coordinator_address"}
RAY_START = re.compile(r"\bray start\b(?P<options>.*)")


@pytest.fixture(scope="module")
def cluster() -> dict:
    return yaml.safe_load(FILE.read_text())


def ray_starts(cluster: dict) -> list[tuple[str, dict[str, str], list[str]]]:
    """Every `ray start` line: as written, its environment variables, its options."""
    lines = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    found = [line for line in lines if RAY_START.search(line)]
    environments = [dict(re.findall(r"\b(RAY_\w+)=(\S+)", line.split("ray start")[0])) for line in found]
    options = [shlex.split(line.split("ray start")[1]) for line in found]
    return list(zip(found, environments, options, strict=True))


def test_rays_launcher_accepts_it(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_keys_rays_schema_does_not_check_are_spelt_right(cluster):
    assert set(cluster["provider"]) <= LOCAL_PROVIDER_KEYS
    assert cluster["provider"]["type"] == "local"
    assert cluster["auth"]["ssh_user"]


def test_it_is_one_machine(cluster):
    assert cluster["provider"]["head_ip"] == "127.0.0.1"
    assert cluster["provider"]["worker_ips"] == []


def test_every_ray_start_line_parses(cluster):
    from ray.scripts.scripts import start

    starts = ray_starts(cluster)
    assert len(starts) == 1
    for _, _, options in starts:
        context = start.make_context("start", list(options))
        assert context.params["head"] is True
        assert context.params["dashboard_host"] == "127.0.0.1"
        assert context.params["disable_usage_stats"] is True


def test_a_misspelt_option_would_be_noticed(cluster):
    import click
    from ray.scripts.scripts import start

    _, _, options = ray_starts(cluster)[0]
    with pytest.raises(click.UsageError, match="dashboard-hots"):
        start.make_context("start", [*options, "--dashboard-hots=0.0.0.0"])


def test_every_ray_start_asks_for_the_token_and_the_autoscaler_that_works(cluster):
    for line, environment, _ in ray_starts(cluster):
        assert environment["RAY_AUTH_MODE"] == "token", line
        assert environment["RAY_enable_autoscaler_v2"] == "0", line


def test_every_command_activates_the_environment_it_runs_in(cluster):
    for command in [*cluster["setup_commands"], *cluster["head_start_ray_commands"]]:
        if re.search(r"\b(ray|pip|python)\b (?!-m venv)", command):
            assert command.startswith(". ~/.selfplay-ray/venv/bin/activate && "), command


def test_the_token_is_for_its_owner_alone(cluster):
    generate, chmod = cluster["setup_commands"][-2:]
    assert "umask 077 && ray get-auth-token --generate" in generate
    assert chmod == "chmod 600 ~/.ray/auth_token"
