"""Files that are nearly an h5ad are read or refused in a sentence: twenty, the same ones each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_h5ad
import numpy as np
import pytest
import read_wrong_files
from anndata import AnnData

from cellfoundry_serving.endpoint import h5ad_worker as worker
from cellfoundry_serving.endpoint.worker_process import OUT_OF_MEMORY

FILES = 10
"""Of each form; `benchmarks/soak/fuzz_endpoint.py` sends others to an endpoint."""


@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_no_damage_to_a_file_is_a_failure_of_the_server(form: str, adata: AnnData, tmp_path: Path) -> None:
    if form == "dense":
        adata.X = adata.X.toarray()
    right, task = tmp_path / "right.h5ad", tmp_path / "task.json"
    adata.write_h5ad(right)
    limits = {"max_cells": 100, "max_tokens": 10**5, "labelled": True}
    task.write_text(json.dumps({"genes": list(adata.var_names), **limits}))
    command = [sys.executable, read_wrong_files.__file__, right, task, tmp_path, *map(str, range(FILES))]
    paths = [str(Path(fuzz_h5ad.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcomes = {"refused": 0, "read": 0, "killed": 0}
    for seed in range(FILES):
        folder = tmp_path / str(seed)
        status = int((folder / "status").read_text())
        assert status <= 0 or status == OUT_OF_MEMORY, f"seed {seed}: {done.stderr[-2000:]}"
        if status:
            outcomes["killed"] += 1  # the answer is a sentence of the server's
        elif (folder / worker.REFUSED).exists():
            outcomes["refused"] += 1
            sentence = (folder / worker.REFUSED).read_text()
            assert sentence.startswith("The file")
            assert str(tmp_path) not in sentence
            assert len(sentence.splitlines()) == 1
            assert "Traceback" not in sentence
        else:
            outcomes["read"] += 1
            with np.load(folder / worker.CELLS) as cells:
                assert cells["indptr"][-1] == len(cells["counts"]) == len(cells["gene_ids"])
                assert (cells["counts"] > 0).all()
    assert outcomes["refused"] >= FILES // 4, outcomes
    assert outcomes["read"] >= 1, outcomes
