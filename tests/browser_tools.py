"""What the browser tests share: a Chromium that is here already, a JupyterLab of its own, and a page that notes
every JavaScript error and every request that would leave the machine.
"""

import functools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from notebook_cases import Cell, never_runs, why_not

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SETTINGS = {  # of JupyterLab: no news, no updates; outputs outside the window are drawn, too
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
LOCAL = re.compile(r"^(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|^(file|data|blob|about):")


@functools.cache
def chromium():
    "The path of a Chromium, and why there is none."
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return None, "Playwright is not installed; run .venv/bin/pip install playwright"
    found = os.environ.get("SAMU_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        names = ", ".join(NAMES)
        return None, f"no Chromium: none of {names} is on the path; install the Debian package chromium, or set SAMU_CHROMIUM"
    return found, ""


# --- A page that is watched


class Watched:
    "A page, what went wrong on it, and what it asked of other machines."

    def __init__(self, page):
        self.page, self.errors, self.outside = page, [], []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self.console)
        page.route(lambda url: not LOCAL.match(url), self.refuse)
        page.set_default_timeout(60_000)

    def console(self, message):
        if message.type == "error":
            self.errors.append(f"{message.text} ({message.location.get('url', '')})")

    def refuse(self, route):
        self.outside.append(route.request.url)
        route.abort()

    def faults(self):
        "Errors and requests to other machines."
        return self.errors + [f"asks {url}" for url in self.outside]


@contextmanager
def watched_page(browser, width=1280, height=900):
    context = browser.new_context(viewport=dict(width=width, height=height))
    try:
        yield Watched(context.new_page())
    finally:
        context.close()


# --- JupyterLab


def runnable(path):
    "A notebook without the cells that are not run here, and without outputs."
    notebook = json.loads(path.read_text(encoding="utf-8"))
    kept = []
    for cell in notebook["cells"]:
        code = Cell("".join(cell["source"]), 0)
        if cell["cell_type"] == "code":
            if never_runs(code) or why_not(code):
                continue
            cell["outputs"] = []
        kept.append(cell)
    notebook["cells"] = kept
    return notebook


def copy_notebooks(folder):
    "All notebooks as they are run here, with the tables and pictures beside them."
    shutil.copytree(ROOT / "nbs", folder, ignore=shutil.ignore_patterns("*.ipynb", ".ipynb_checkpoints"))
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            target = folder / path.relative_to(ROOT / "nbs")
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(runnable(path)), encoding="utf-8")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def lab_environment(folder):
    "Nothing of the user's Jupyter is read or written."
    places = {
        f"{name}_DIR": folder / name.lower()
        for name in ("JUPYTER_CONFIG", "JUPYTER_DATA", "JUPYTER_RUNTIME", "JUPYTERLAB_WORKSPACES", "JUPYTERLAB_SETTINGS")
    }
    for name, content in SETTINGS.items():
        file = places["JUPYTERLAB_SETTINGS_DIR"] / f"@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = dict(PYTHONPATH=path, IPYTHONDIR=str(folder / "ipython"), TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    return {**os.environ, **own, **{k: str(v) for k, v in places.items()}}


@contextmanager
def jupyterlab(folder):
    """A server over folder/nbs; yields an address maker: notebook -> address. It ends the kernels of earlier notebooks:
    all chapters open at once do not fit into memory."""
    port, token = free_port(), secrets.token_hex(8)
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'nbs'}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--ServerApp.port_retries=0"]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(command, env=lab_environment(folder), stdout=log, stderr=log, cwd=folder)

    def address(notebook):
        with urllib.request.urlopen(f"{api}/kernels?token={token}") as answer:
            for kernel in json.load(answer):
                place = f"{api}/kernels/{kernel['id']}?token={token}"
                urllib.request.urlopen(urllib.request.Request(place, method="DELETE")).close()
        return f"http://127.0.0.1:{port}/lab/tree/{notebook}.ipynb?token={token}&reset"

    try:
        wait_for(f"{api}?token={token}", server, folder / "server.log")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def wait_for(address, server, log, seconds=60):
    "Until the server answers."
    end = time.time() + seconds
    while time.time() < end and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


RUN_ALL = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  const panel = app.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  window.ran = 'running';
  app.commands.execute('notebook:run-all-cells').then(() => { window.ran = 'done'; }, e => { window.ran = String(e); });
}"""
IDLE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  return window.ran !== 'running' && panel.sessionContext.session.kernel.status === 'idle';
}"""
FAILED = """() => {
  const cells = Array.from(window.jupyterapp.shell.currentWidget.content.model.cells);
  const found = [];
  cells.forEach((cell, i) => {
    if (cell.type !== 'code') return;
    for (const output of cell.outputs.toJSON())
      if (output.output_type === 'error') found.push(`cell ${i + 1}: ${output.ename}: ${output.evalue}`);
    if (cell.executionCount === null && cell.sharedModel.source.trim()) found.push(`cell ${i + 1}: not run`);
  });
  return found;
}"""


def run_all(watched, address, seconds=300):
    "Open a notebook and run all its cells. Returns what went wrong in them."
    page = watched.page
    page.goto(address)
    page.wait_for_function("() => window.jupyterapp && document.querySelector('.jp-Notebook')")
    page.evaluate(RUN_ALL)
    page.wait_for_function(IDLE, timeout=1000 * seconds, polling=300)
    return page.evaluate(FAILED)


# --- Widgets, moved by keyboard

PIXELS = """image => {
  const canvas = document.createElement('canvas');
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  canvas.getContext('2d').drawImage(image, 0, 0);
  return image.complete && image.naturalWidth ? canvas.toDataURL() : '';
}"""


def pixels(page, name):
    "What is seen in the picture of an explorer."
    return page.locator(f".samu-{name}-picture").last.evaluate(PIXELS)


KEYS = re.compile(r"Enter|Tab|Home|End|Arrow\w+|Control\+\w")  # anything else is typed


def press(page, name, control, kind, keys):
    "Focus a control, press keys and type texts."
    inner = dict(slider=".noUi-handle", text="input")[kind]
    place = page.locator(f".samu-{name}-{control} {inner}").last
    place.scroll_into_view_if_needed()
    place.focus()
    for key in keys:
        page.keyboard.press(key) if KEYS.fullmatch(key) else page.keyboard.type(key)


def settle(page, name):
    "Wait until the picture stays as it is: a key may still be on its way to the kernel."
    last = None
    while pixels(page, name) != last:
        last = pixels(page, name)
        page.wait_for_timeout(700)
        page.wait_for_function(IDLE, polling=100)


def moved(page, name, control, kind, keys, seconds=20):
    "Move a control by keyboard. Raises AssertionError if the picture or the sentence stays as it was."
    page.wait_for_function(f"() => document.querySelector('img.samu-{name}-picture')?.naturalWidth > 0")
    sentence = page.locator(f".samu-{name}-sentence").last
    before, said = pixels(page, name), sentence.inner_text()
    press(page, name, control, kind, keys)
    end = time.time() + seconds
    while time.time() < end and (pixels(page, name) in ("", before) or sentence.inner_text() == said):
        page.wait_for_timeout(200)
    settle(page, name)
    assert pixels(page, name) != before, f"{name}: the picture ignores {control}"
    assert sentence.inner_text() != said, f"{name}: the sentence ignores {control}"


def keep(page, name, whole=True):
    "A screenshot, where they are wanted."
    folder = os.environ.get("SAMU_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = Path(folder) / f"{name.replace('/', '-')}.png"
        page.screenshot(path=file, full_page=True) if whole else page.screenshot(path=file)
