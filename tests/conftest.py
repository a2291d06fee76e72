"Registers notebook_cases.py, which makes pytest cases of the notebooks in nbs/, and the marker `gpu`."
import pytest

pytest_plugins = ["notebook_cases"]

def pytest_configure(config): config.addinivalue_line("markers", "gpu: runs on a CUDA device; skipped where there is none")

def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is None: return
    import torch
    if not torch.cuda.is_available(): pytest.skip("no CUDA device")
