from __future__ import annotations

import os

import click


@click.command()
@click.argument("target")
@click.option("--html", "html_path", metavar="FILE", help="Write it as a page for browsers.")
def explain(target: str, html_path: str | None) -> None:
    """Say what has happened to TARGET, phase by phase, and what to do where it failed.

    TARGET is a reason, as in the brackets after a message; a pod (NAMESPACE/POD or its uid); a
    container's id, of one restore; or a checkpoint (its directory, or NAMESPACE/NAME).
    """
    from grit_runtime import config, reasons
    from grit_runtime.explain import story

    if page := reasons.find(target):
        from grit_runtime.explain import terminal

        if html_path is not None:
            raise click.UsageError(
                f"{page.name} is a reason, which has no page as HTML; leave out --html"
            )
        terminal.show_reason(page, story.with_error(page.name)[-3:])
        return
    told = story.tell(target, config.load())
    if html_path is None:
        from grit_runtime.explain import terminal

        terminal.show(told)
        return
    from grit_runtime.explain import page as pages

    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(html_path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(pages.page(told))
