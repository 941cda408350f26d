import subprocess
import sys

import pytest

from quire_operator.config import RuntimeConfig
from quire_operator.errors import ConfigError
from quire_operator.flags import Parser, field_docs
from quire_operator.plan import OperatorSettings


def build(*arguments: str, **environment: str) -> tuple[RuntimeConfig, OperatorSettings]:
    parser = Parser("quire-operator", "", environment)
    parser.add_options(RuntimeConfig)
    parser.add_options(OperatorSettings)
    given = parser.parse_args(arguments)
    return parser.build(RuntimeConfig, given), parser.build(OperatorSettings, given)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quire_operator", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_help_names_every_flag_and_its_default() -> None:
    done = run("--help")

    assert done.returncode == 0
    assert "--watch-namespaces" in done.stdout
    assert "--engine-image" in done.stdout
    assert "Default: 600." in done.stdout


def test_a_wrong_flag_ends_with_status_2_and_the_nearest_name() -> None:
    done = run("--watch-namespace", "a")

    assert done.returncode == 2
    assert done.stderr == (
        "quire-operator: error: unknown argument: --watch-namespace; "
        "did you mean --watch-namespaces?\n"
    )


def test_every_field_has_a_help_text() -> None:
    for type_ in (RuntimeConfig, OperatorSettings):
        assert set(field_docs(type_)) == set(type_.__dataclass_fields__)


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    runtime, settings = build(
        "--num-workers=3",
        "--no-leader-election",
        QUIRE_OPERATOR_NUM_WORKERS="9",
        QUIRE_OPERATOR_WATCH_NAMESPACES="a, b",
        QUIRE_OPERATOR_ENGINE_IMAGE="example.test/engine:1",
        QUIRE_OPERATOR_NETWORK_POLICIES="false",
    )

    assert runtime.num_workers == 3
    assert not runtime.leader_election
    assert runtime.watch_namespaces == ("a", "b")
    assert runtime.resync_s == 600.0
    assert settings.engine_image == "example.test/engine:1"
    assert not settings.network_policies


def test_structured_settings_are_read_from_text() -> None:
    _, settings = build(
        "--pod-monitor-labels=release=prometheus,team=ml",
        "--nvlink-label=quire.dev/nvlink=true",
        '--default-tolerations=[{"key": "gpu", "operator": "Exists"}]',
    )

    assert settings.pod_monitor_labels == {"release": "prometheus", "team": "ml"}
    assert settings.nvlink_label == ("quire.dev/nvlink", "true")
    assert settings.default_tolerations == ({"key": "gpu", "operator": "Exists"},)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--num-workers=many", "--num-workers must be a whole number, not 'many'"),
        ("--num-workers=0", "--num-workers must be 1 or more, not 0"),
        ("--log-level=loud", "--log-level must be debug, info, warning or error, not 'loud'"),
        ("--metrics-address=8080", "address '8080' is not [HOST]:PORT"),
        ("--lease-duration-s=5", "lease > renew deadline"),
        ("--nvlink-label=x", "--nvlink-label must be KEY=VALUE, not 'x'"),
        ("--default-tolerations={}", "must be a JSON list of objects"),
    ],
)
def test_a_bad_value_ends_with_status_2_naming_what_would_work(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build(argument)

    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_lease_needs_a_namespace() -> None:
    with pytest.raises(ConfigError, match="--namespace"):
        RuntimeConfig().resolved({})
    assert RuntimeConfig().resolved({"POD_NAMESPACE": "quire-system"}).namespace == "quire-system"
    assert RuntimeConfig(leader_election=False).resolved({}).namespace == ""


def test_a_pod_uses_its_account_whatever_kubeconfig_it_inherits() -> None:
    environment = {"KUBECONFIG": "/x", "POD_NAMESPACE": "n"}

    assert RuntimeConfig().resolved(environment).kubeconfig == "/x"
    inside = environment | {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert RuntimeConfig().resolved(inside).kubeconfig == ""
