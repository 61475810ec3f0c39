"""The command `demo`: prepares the embedded default where it is missing, runs every system on it, and measures them."""

import time

import click

from pyserini_kd.cli import command


@command(
    name="demo",
    example="pyserini-kd demo",
    epilog="Prepares what is missing (minutes to half an hour, once), then searches pydocs test topics and prints measures.",
)
def main() -> None:
    """Run the main job on the embedded default, from nothing to a table of measures."""
    from pyserini_kd.distillation import embedded
    from pyserini_kd.evaluation import tables

    started = time.monotonic()
    found = embedded.run_all()
    click.echo(f"\npydocs test: {found.topics} topics over {found.docs} documents\n")
    click.echo(tables.table(["system", *embedded.MEASURES, "ms/query", "run"], found.rows) + "\n")
    for better, worse, difference, p_value in found.comparisons:
        click.echo(f"RR@10, {better} against {worse}: {difference:+.4f} (p = {p_value:.2g}, paired t-test)")
    click.echo(f"\n{time.monotonic() - started:.0f} s in all. Next: python -m pyserini_kd.search --encoder student")
    click.echo('or: python -m pyserini_kd.search --query "merge two sorted arrays"')


if __name__ == "__main__":
    main()
