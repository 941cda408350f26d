"""The operator's command line."""

import asyncio
from collections.abc import Mapping, Sequence

from quire_operator.config import RuntimeConfig
from quire_operator.errors import ConfigError
from quire_operator.flags import Parser
from quire_operator.logs import configure_logs
from quire_operator.plan import OperatorSettings


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the operator until SIGTERM; return the exit status: 0 stopped, 1 broke, 2 bad flags."""
    parser = Parser(
        "quire-operator",
        "Turns LLMDeployments into engines, routers and their Services.",
        environment,
    )
    parser.add_options(RuntimeConfig)
    parser.add_options(OperatorSettings)
    given = parser.parse_args(arguments)
    config = parser.build(RuntimeConfig, given)
    settings = parser.build(OperatorSettings, given)
    configure_logs(config.log_level, config.log_format)
    # kopf takes seconds to import, which --help and a wrong flag need not wait for.
    from prometheus_client import disable_created_metrics

    from quire_operator.runtime.process import run_operator

    disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        asyncio.run(run_operator(config.resolved(environment), settings))
    except ConfigError as error:
        parser.error(str(error))
    return 0
