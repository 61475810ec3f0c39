"""The command `demo`: prepares models and indexes for `pydocs`, runs every system on it, and evaluates them."""

import time

import click

from pyserini_kd.cli import command


@command(
    name="demo",
    example="pyserini-kd demo",
    epilog="Prepares missing models and indexes once (up to half an hour), then searches the pydocs test topics.",
)
def main() -> None:
    """Run and compare all systems on the embedded collection `pydocs`, and print a table of measures."""
    from pyserini_kd.distillation import embedded
    from pyserini_kd.evaluation import tables

    started = time.monotonic()
    found = embedded.run_all()
    click.echo(f"\npydocs test: {found.topics} topics over {found.docs} documents\n")
    click.echo(tables.table(["system", *embedded.MEASURES, "ms/query", "run"], found.rows) + "\n")
    for better, worse, difference, p_value in found.comparisons:
        click.echo(f"RR@10, {better} against {worse}: {difference:+.4f} (p = {p_value:.2g}, paired t-test)")
    click.echo(f"\n{time.monotonic() - started:.0f} s in total. Next: python -m pyserini_kd.search --encoder student")
    click.echo('or: python -m pyserini_kd.search --query "merge two sorted arrays"')


if __name__ == "__main__":
    main()
