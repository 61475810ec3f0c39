"""The command `evaluate`."""

import click

from pyserini_kd.cli import command
from pyserini_kd.evaluation.measures import PRESETS
from pyserini_kd.evaluation.run_files import DisagreementError, EvaluateConfig, evaluate_files


@command(
    "evaluate",
    "evaluate --qrels qrels.dl19.txt --preset dl19 --baseline run.bm25.txt run.student.txt",
    "\b\nMeasures: nDCG@k RR[@k] AP[@k] P@k R@k Rprec Bpref RBP(p=0.8)[@k] Judged@k Success@k. Binary measures\n"
    "count grades from 1 as relevant; AP(rel=2) and RR(rel=2)@10 count from 2. Presets: "
    + "".join(f"\n  {name}: {' '.join(preset.measures)}" for name, preset in PRESETS.items()),
    settings=EvaluateConfig,
)
def main(settings: EvaluateConfig) -> None:
    """Measure runs against relevance judgements like trec_eval -c, and warn where the numbers may mislead."""
    try:
        report = evaluate_files(settings)
    except DisagreementError as error:
        raise click.ClickException(str(error)) from error
    click.echo(report.shown(settings.output_format))


if __name__ == "__main__":
    main()
