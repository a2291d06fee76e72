"""What all tests share: the notebook plugin, the marker `gpu`, the order of files, one invented world in
one cache.
"""

import functools
import os
from pathlib import Path

import pytest
from filelock import FileLock

pytest_plugins = ["notebook_cases"]

# Notebooks run in forks of this process, and CUDA does not survive a fork: torch is to ask the driver's library
# (NVML) whether there is a GPU, and not to initialise CUDA for the answer.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

# What takes longest comes first: with two workers, the last file decides when the run ends.
LONGEST = [
    "test_real.py",
    "test_families.py",
    "test_cli.py",
    "test_attacks.py",
    "test_browser.py",
    "test_browser_pages.py",
    "10_real_people.ipynb",
    "05_forgetting.ipynb",
    "08_attacks.ipynb",
    "06_evaluation.ipynb",
    "07_baselines.ipynb",
    "11_many.ipynb",
    "14_explore.ipynb",
    "test_course.py",
]


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: runs on a CUDA device; skipped where there is none")
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist has one core to itself
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    for world in worlds_in(item.path):
        prepare_world_once(world)


@functools.cache
def worlds_in(path):
    "The invented worlds that a file of tests or a notebook loads."
    text = Path(path).read_text(encoding="utf-8")
    plain = "biographies" in text.replace("biographies-doors", "")
    return [name for name, there in (("biographies", plain), ("biographies-doors", "biographies-doors" in text)) if there]


@functools.cache
def prepare_world_once(world):
    "Trains and keeps an invented world, unless the cache has it. One worker does it while the other waits."
    from notebook_cases import forked
    from samu.workshop.store import cache_folder

    with FileLock(cache_folder() / f"tests-{world}.lock"):
        for _ in forked(prepare_world, world):
            pass


def prepare_world(world, line):
    "Everything about an invented world that many tests need. What goes wrong here is for the tests to show."
    import samu

    exp = samu.load(world)
    for part in ("latents", "probes"):
        getattr(exp, part)
    line.send(("done",))


def loaded(world):
    "An invented world on one thread. A test that changes its weights puts them back."
    import samu
    import torch

    prepare_world_once(world)
    torch.set_num_threads(1)
    made = samu.load(world)
    made.latents, made.probes
    yield made
    assert made.applied is None, "a test left a run in the model"


@pytest.fixture(scope="session")
def exp():
    "The invented world, loaded once for a worker."
    yield from loaded("biographies")


@pytest.fixture(scope="session")
def doors():
    "The same people, whose facts the training texts also tell in other ways."
    yield from loaded("biographies-doors")


@pytest.fixture(scope="module")
def browser():
    "A Chromium, for the tests that look at pages."
    import browser_tools as tools
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=tools.chromium()[0], args=tools.FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def watched(browser):
    "A page whose faults and requests are noted."
    from browser_tools import watched_page

    with watched_page(browser) as watched:
        yield watched
