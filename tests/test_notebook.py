"""docs/quickstart.ipynb: what is saved is complete, and its cells run."""

import ast
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"
LENGTH = "config.train_images = 9_600"
SHORT = """
config.train_images = 32
config.optimizer.warmup_steps = 1
config.data.eval = "shapes:validation[:20]"
config.eval.batch_size = 10
"""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


def test_the_saved_page_is_complete():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    for cell in cells:
        ast.parse(cell.source)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert len(pictures(notebook)) == 3
    assert NOTEBOOK.stat().st_size < 500_000
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert "python -m scratchdet_jax" not in text  # the output of an older version


@pytest.mark.slow  # draws the data set, compiles training and detection
def test_every_cell_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(LENGTH, SHORT)
    assert sum(SHORT in cell.source for cell in notebook.cells) == 1
    for name in ("configs", "scratchdet_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "docs").mkdir()
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=place).execute()
    assert len(pictures(notebook)) == 3
    assert (tmp_path / "runs/quickstart/metrics.jsonl").exists()
