import re

import pytest

TINY = (
    "--device cpu --name resnet18 --size 16 --precision fp32 --batches 2 --updates 1 --warmup 1 --rounds 1 "
    "--product 32 --compile eager"
)


def test_the_table_of_a_tiny_run_takes_the_place_of_the_documents_section(prepare_module, tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text("# Benchmarks\n\nBefore.\n\n## GPU\n\nNot run yet.\n\n## After\n\nKept.\n", encoding="utf-8")
    prepare_module.main([*TINY.split(), "--write", str(document)])
    text = document.read_text(encoding="utf-8")
    assert "Not run yet" not in text
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Benchmarks", "## GPU", "## After"]
    rows = [re.split(r"\s*\|\s*", line)[1:-1] for line in text.splitlines() if line.startswith("| 2 |")]
    assert [row[:3] for row in rows] == [["2", "no", "no"], ["2", "yes", "no"], ["2", "yes", "yes"]]
    assert all(float(row[5]) > 0 and float(row[7]) > 0 for row in rows)
    prepare_module.write("Other.\n", document)
    assert document.read_text(encoding="utf-8").endswith("## GPU\n\nOther.\n\n## After\n\nKept.\n")


def test_without_a_gpu_it_says_so(prepare_module, monkeypatch, capsys):
    monkeypatch.setattr(prepare_module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        prepare_module.main([])
    assert "no CUDA device" in capsys.readouterr().err
