# `make demo`: install, make the data, train FP32 and INT8 twins, print the table.
# `make test`: install and run the tests. Both build .venv if it is not there.
# With a GPU: `make test-cuda` (SANITIZE=1: under compute-sanitizer), `make bench-cuda`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := work_dirs/demo
PIP := $(BIN)/python -m pip install --disable-pip-version-check

# STACK=upstream installs OpenMMLab's own packages instead of the maintained fork.
STACK ?= onedl
ifeq ($(STACK),upstream)
MMCV := mmcv==2.1.0
# Its mmengine resumes checkpoints, which torch >= 2.6 refuses to load otherwise.
export TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD := 1
MM := mmengine==0.10.7 mmdet==3.3.0
else
MMCV := onedl-mmcv==2.3.6
MM := onedl-mmengine==0.10.12 onedl-mmdetection==3.5.1
endif

# TESTS=all runs the slow tests too, as CI does.
ifeq ($(TESTS),all)
MARKS := -m "slow or not slow"
endif

FOLDERS := csrc csrc/cpu csrc/cuda csrc/cuda/primitives
SOURCES := setup.py $(foreach kind,h cpp cu,$(wildcard $(addsuffix /*.$(kind),$(FOLDERS))))

# Steps of tools/cuda_session.py: all that measure.
BENCHMARKS := train train-graph ops wgmma glue train-compile ops-autotune train-compile-int8

# Freed memory goes back at once, so that the sanitizer sees what lies beyond a tensor's end. Our
# kernels alone, not the reference's; and no calls that fail, some of which PyTorch ignores.
ifdef SANITIZE
SANITIZER := PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode=9 \
	--report-api-errors no --kernel-name kns=daq_mm
endif

.PHONY: demo test test-cuda bench-cuda lint install data clean help

help:
	@sed -n '1,3p' Makefile; echo "also: make lint | data | install | clean"

install: $(VENV)/.built

$(VENV)/.packages: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -c requirements.txt --upgrade pip wheel "setuptools<81"
	$(PIP) -c requirements.txt numpy psutil ninja torch
	MMCV_WITH_OPS=1 $(PIP) -c requirements.txt --no-build-isolation $(MMCV)
	$(PIP) -r requirements.txt $(MM)
	$(PIP) --no-deps mmaction2==1.2.0 nvidia-cutlass==4.2.0.0
	touch $@

$(VENV)/.built: $(VENV)/.packages $(SOURCES)
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@

data: install
	$(BIN)/python tools/prepare_data.py all

demo: data
	$(BIN)/python tools/run_suite.py tools/suites/demo.json --records $(DEMO)/records
	$(BIN)/python tools/collect_results.py $(DEMO)/records --out $(DEMO) --name table \
		--html $(DEMO)/report.html
	@echo "The table is in $(DEMO)/table.md, a report in $(DEMO)/report.html, logs in $(DEMO)/runs."

test: install
	$(BIN)/python -m pytest $(MARKS) $(PYTEST_ARGS)

test-cuda: install
	$(SANITIZER) $(BIN)/python -m pytest --device cuda tests/test_ops_*.py $(MARKS) $(PYTEST_ARGS)

bench-cuda: install
	$(BIN)/python tools/cuda_session.py --minutes 60 --steps $(BENCHMARKS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check daq_mm tools tests setup.py

clean:
	rm -rf build daq_mm/_C*.so *.egg-info
