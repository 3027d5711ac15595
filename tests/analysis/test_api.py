"""What a notebook uses, and the notebook itself."""

import json

import analysis.api as api


def test_the_notebook_runs(repository, capsys):
    notebook = json.loads((repository / "docs/notebooks/laws.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert names["found"].schedule
    assert "the error" in capsys.readouterr().out
    law = names["law"]
    assert len(repr(law).splitlines()) <= 10
    assert law._repr_html_().count("<tr>") == 1 + len(law.runs)


def test_every_name_is_there():
    assert all(hasattr(api, name) for name in api.__all__)
