"""The command `doctor`: checks the installation."""

import json

import click

from pyserini_kd.cli import command
from pyserini_kd.retrieval.diagnosis import diagnose


@command(
    name="doctor",
    example="pyserini-kd doctor",
    epilog="Exit code 1 if something essential is broken. Notes do not count. `--json` is for scripts and bug reports.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def main(context: click.Context, as_json: bool) -> None:
    """Check what works on this machine, and how to repair the rest."""
    findings = diagnose()
    faults = sum(finding.mark == "FAULT" for finding in findings)
    if as_json:
        record = {"ok": faults == 0, "findings": [finding._asdict() for finding in findings]}
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{finding.mark:5}  {finding.name:16}  {finding.found}")
            if finding.advice:
                click.echo(f"{'':25}what to do: {finding.advice}")
        click.echo(f"{faults} fault(s)" if faults else "Everything essential works.")
    context.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
