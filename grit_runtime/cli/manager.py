import asyncio

import click

from grit_runtime import log
from grit_runtime.config import Config
from grit_runtime.manager import names


@click.command()
@click.option(
    "--namespace",
    envvar="POD_NAMESPACE",
    default=names.NAMESPACE,
    show_default=True,
    help="The namespace of the manager and of the agents.",
)
@click.option("--webhook-port", default=names.WEBHOOK_PORT, show_default=True)
@click.option("--metrics-port", default=names.METRICS_PORT, show_default=True)
@click.option(
    "--agent-port", default=names.AGENT_API_PORT, show_default=True, help="Of the agents' API."
)
@click.option(
    "--agent-token",
    default=names.AGENT_TOKEN_PATH,
    show_default=True,
    help="File with a ServiceAccount's token for the audience grit-agent.",
)
@click.option(
    "--checkpoint-root",
    default=Config().checkpoint_root,
    show_default=True,
    help="Where checkpoints lie on nodes, as their configuration says.",
)
@click.option("--log-json", is_flag=True, help="Log lines of JSON, not logfmt.")
def manager(
    namespace: str,
    webhook_port: int,
    metrics_port: int,
    agent_port: int,
    agent_token: str,
    checkpoint_root: str,
    log_json: bool,
) -> None:
    """Run the controllers of Checkpoints, Restores and Migrations, and their webhooks.

    Of several managers one leads, and all answer webhooks. The cluster is that of the pod, or of
    KUBECONFIG.
    """
    try:
        from grit_runtime.manager import main
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"the manager needs the Python package {error.name}; install grit-runtime[manager]"
        ) from None
    if log_json:
        log.as_json()
    options = main.Options(
        namespace=namespace,
        webhook_port=webhook_port,
        metrics_port=metrics_port,
        agent_port=agent_port,
        agent_token=agent_token,
        checkpoint_root=checkpoint_root,
    )
    asyncio.run(main.run(options))
