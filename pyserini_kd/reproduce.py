"""The command `reproduce`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import click
from pydantic import model_validator

from pyserini_kd.cli import command
from pyserini_kd.evaluation import experiments, tables
from pyserini_kd.evaluation.experiments import Condition, Outcome
from pyserini_kd.storage import settings as shared
from pyserini_kd.storage.errors import InputError
from pyserini_kd.storage.settings import option


class Settings(shared.Settings):
    """The options of `reproduce`."""

    list_them: bool = option("--list", False, "Print the conditions and stop.")
    names: tuple[str, ...] = option("--condition", (), "Run this condition; give several times for more.", metavar="NAME")
    run_all: bool = option("--all", False, "Run all conditions whose requirements are met.")
    dry_run: bool = option("--dry-run", False, "Print the commands without running them.")
    data: Path | None = option("--data", None, "Folder of the collections.", metavar="DIRECTORY")
    directory: Path | None = option("--directory", None, "Folder for indexes and runs [default: runs/reproduce].")
    matrix: Path | None = option("--matrix", None, "Use this matrix instead of the package's.")
    style: Literal["table", "markdown"] = option("--format", "table", "Output format.")

    @model_validator(mode="after")
    def rules(self) -> Self:
        """Check that exactly one task is given and that the data folder exists."""
        if self.list_them + bool(self.names) + self.run_all != 1:
            raise InputError("give exactly one of --list, --condition NAME and --all")
        if self.data and not self.data.is_dir():
            raise InputError(f"folder {self.data} does not exist", "data")
        return self


@command(
    "reproduce",
    "pyserini-kd reproduce --condition bm25-scifact --data ~/collections",
    "--data contains cacm/, beir/scifact/, msmarco-dl19/ and msmarco-passage/; the matrix (reproduce.yaml in the package) "
    "names their files. Exit code 1 if a condition got FAIL; off and skipped are not failures.",
    settings=Settings,
)
def main(settings: Settings) -> None:
    """Run known experiments again and compare the measures with the expected values."""
    conditions = experiments.read_matrix(settings.matrix or experiments.MATRIX)
    if settings.names:
        conditions = experiments.choose(conditions, settings.names)
    places = experiments.places_of(settings.data, settings.directory)
    if settings.list_them:
        click.echo(_listing(conditions, settings.style))
    elif settings.dry_run:
        click.echo("\n".join(experiments.script(conditions, places)))
    else:
        outcomes = experiments.reproduce(conditions, places)
        click.echo(_results(conditions, outcomes, settings.style))
        click.get_current_context().exit(any(outcome.verdict == "FAIL" for outcome in outcomes))


def _listing(conditions: Sequence[Condition], style: str) -> str:
    """The conditions with their expected measures."""
    if style == "markdown":
        header = ["condition", "what", "measure", "expected", "tolerance", "source"]
        rows = [(c, measure, value) for c in conditions for measure, value in c.expected.items()]
        return tables.markdown(header, [[c.name, c.about, m, value, f"{c.tolerance:g}", c.source] for c, m, value in rows])
    lines = []
    for row in conditions:
        values = ", ".join(f"{measure} {tables.number(value)}" for measure, value in row.expected.items())
        lines += [f"{row.name:26}{row.about}", f"{'':26}{values} (+-{row.tolerance:g}; {row.source})"]
    return "\n".join(lines)


def _results(conditions: Sequence[Condition], outcomes: Sequence[Outcome], style: str) -> str:
    """The outcomes, and the number of each verdict."""
    if style == "markdown":
        rows = {row.name: row for row in conditions}
        header = ["condition", "what", "measure", "expected", "source", "got", "verdict"]
        cells = [(rows[o.condition], o) for o in outcomes]
        text = tables.markdown(header, [[c.name, c.about, o.measure, o.expected, c.source, o.got, o.verdict] for c, o in cells])
    else:
        text = tables.table(["condition", "measure", "expected", "got", "verdict"], [o[:5] for o in outcomes])
        reasons: dict[str, dict[str, None]] = {}
        for o in outcomes:
            if o.why:
                reasons.setdefault(f"{o.verdict}, {o.why}", {})[o.condition] = None
        text += "".join(f"\n\n{why}:\n  {', '.join(names)}" for why, names in reasons.items())
    counts = {word: sum(o.verdict == word for o in outcomes) for word in ("OK", "off", "FAIL", "new", "skipped")}
    return f"{text}\n\n" + ", ".join(f"{count} {word}" for word, count in counts.items() if count)


if __name__ == "__main__":
    main()
