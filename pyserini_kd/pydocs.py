"""The command `pydocs`: writes the embedded collection to files."""

from pathlib import Path

import click

from pyserini_kd.cli import command
from pyserini_kd.data.docstrings import write_files
from pyserini_kd.storage.settings import Overwrite, Settings, option


class PydocsSettings(Settings):
    """Settings of the command `pydocs`."""

    output: Path = option("--output", help="Folder to write to.")
    overwrite: Overwrite = False


@command(
    name="pydocs",
    example="pyserini-kd pydocs --output pydocs/",
    epilog="Writes docs.jsonl (Pyserini JSONL), topics.SPLIT.tsv and qrels.SPLIT.txt for train, dev and test.",
    settings=PydocsSettings,
)
def main(settings: PydocsSettings) -> None:
    """Write the embedded collection to files: documents, topics and qrels."""
    for path, written in write_files(settings.output, overwrite=settings.overwrite):
        click.echo(f"{path}: {written}")


if __name__ == "__main__":
    main()
