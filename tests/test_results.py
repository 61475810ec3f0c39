"""The pages of measured results: each renders, uses every CSV file beside it, and shows what was measured."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDIES = {"benchmarks", "demo", "distill", "distillation", "fusion", "reproduce"}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build_pages():
    return load(ROOT / "docs" / "build_pages.py")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Study -> text of its page, made by the script."""
    folder = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, str(ROOT / "docs" / "build_pages.py"), str(folder)], check=True)
    return {path.stem: path.read_text(encoding="utf-8") for path in (folder / "results").iterdir()}


def test_every_page_renders(rendered):
    assert rendered.keys() == STUDIES
    for study, text in rendered.items():
        assert text.startswith(f"---\n# Generated from experiments/{study}/; do not edit.\ntitle: ")
        assert "\n## Summary\n" in text and "{{" not in text


def test_the_committed_pages_are_those_of_the_data_and_the_code(build_pages):
    for source in build_pages.COMMITTED:
        for page in source():
            committed = (ROOT / "docs" / page.path).read_text(encoding="utf-8")
            assert committed == page.text, f"{page.path} is stale: run python docs/build_pages.py"


def test_every_csv_is_used_by_its_page():
    files = sorted((ROOT / "experiments").rglob("*.csv"))
    assert files
    for path in files:
        assert f'{{{{ table("{path.name}") }}}}' in (path.parent / "page.md").read_text(encoding="utf-8"), path


def test_every_row_of_a_table_has_as_many_cells_as_its_header(rendered, build_pages):
    for study, text in rendered.items():
        for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(build_pages.cells(line)) for line in block.splitlines()}) == 1, (study, block)


def test_lines_of_text_are_short():
    for path in (ROOT / "experiments").glob("*/page.md"):
        text = re.sub(r"^```.*?^```|^    python .*?$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")], path


def test_links_between_pages_lead_somewhere(rendered):
    for study, text in rendered.items():
        assert {name for name in re.findall(r"\]\((\w+)\.md", text)} <= STUDIES, study


@pytest.mark.parametrize(
    "row",
    [
        "| colbert | margin-mse | 3 | 0.8903 | 0.9109 | 0.6538 | 0.5607 | +0.0314 (0.000) | +0.0000 (0.999) | +0.0191 (0.137) |",
        "| bert_dot | margin-mse | ranknet | +0.0409 (0.000) | +0.05, +0.03, +0.05 | +0.0402 (0.000) | -0.0380 (0.003) |",
        "| prettr | 3 | -6.6 | 4.2 |",
        "| bert_dot | margin-mse | 3 | 0.3529 | 0.4052 | 0.8856 | +0.0717 (0.000) |",
    ],
    ids=["reranking", "pairs", "magnitudes", "retrieval"],
)
def test_the_tables_of_distillation_come_from_the_parquet_files(rendered, row):
    assert f"\n{row}\n" in rendered["distillation"]


def test_columns_of_figures_are_aligned_to_the_right(build_pages):
    rows = [["run", "AP", "gain", "time"], ["bm25", ".25", "-", "6 ms"], ["a|b", "-0.5 (0.1)", "", "slow"]]
    page = build_pages.align_figures(build_pages.markdown_table(rows) + "\n\ntext")
    assert page.splitlines()[1] == "|:--|--:|--:|:--|" and page.splitlines()[3].startswith(r"| a\|b |")


def test_faults_of_a_page_are_errors(build_pages, tmp_path):
    """A missing CSV file, a row that is too short, an unknown name."""
    page = tmp_path / "page.md"
    page.write_text('{{ table("no.csv") }}')
    with pytest.raises(FileNotFoundError, match=r"no\.csv"):
        build_pages.render(page)
    (tmp_path / "short.csv").write_text("a,b\n1\n")
    page.write_text('{{ table("short.csv") }}')
    with pytest.raises(ValueError, match=r"short\.csv"):
        build_pages.render(page)
    page.write_text("{{ nothing }}")
    with pytest.raises(Exception, match="nothing"):
        build_pages.render(page)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)], cwd=ROOT, check=True)
    html = {
        name: (tmp_path / f"{name}.html").read_text(encoding="utf-8") for name in ("index", "results/demo", "reference/api")
    }
    assert "<title>pyserini_kd" in html["index"] and 'href="guide/distil.html"' in html["index"]
    assert "<title>The demo: choices and measurements - pyserini_kd</title>" in html["results/demo"]
    assert "do not edit" not in html["results/demo"] and 'id="pyserini_kd.models.rankers.load"' in html["reference/api"]
    assert (tmp_path / "examples" / "comparison.html").stat().st_size > 100_000  # with its figures
