PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Fewer log lines from TensorFlow; the scripts print what matters.
export TF_CPP_MIN_LOG_LEVEL ?= 2

# Files of tests that train nothing and export little, for work in between.
FAST := annotation another_scanner api biometry command_line compare configuration datasets dicom dicom_seg \
  docs errors evaluation floors growth harness ignored images labels layers losses metrics mutations \
  names phantom_fetal_head_2d postprocessing predict report_figures report_tables report_views \
  shared

.PHONY: demo demo-multi-organ demo-embryo demo-renderer results test test-fast lint docs clean

demo: $(VENV)/installed
	$(BIN)/python train_fetal_head.py --level=2

demo-multi-organ: $(VENV)/installed
	$(BIN)/python train_multi_organ.py

demo-embryo: $(VENV)/installed
	$(BIN)/python train_embryo.py

demo-renderer: $(VENV)/installed
	for variant in Orig-T2T Orig-S2T S2T-sp S2T-p S2T; do \
	  $(BIN)/python train_renderer.py --variant=$$variant --work_dir=runs/$$variant || exit 1; \
	done
	$(BIN)/python train_renderer.py --variant=Orig-S2T --appearance_strength=1 --work_dir=runs/augmented
	$(BIN)/python eval/renderer_tables.py --runs=runs/Orig-T2T,runs/Orig-S2T,runs/augmented,runs/S2T-sp,runs/S2T-p,runs/S2T \
	  --output=runs/renderer_tables

# Tables of docs/results_tables.md, trained where runs are missing: all, or TABLE=name; real data lie in
# DATA_DIR; FRESH=word makes them once more and compares.
results: $(VENV)/installed
	$(BIN)/python benchmarks/results.py $(TABLE:%=--tables=%) $(if $(DATA_DIR),--data_dir='$(DATA_DIR)') $(FRESH:%=--fresh=%) $(JOBS:%=--jobs=%)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder

test-fast: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder $(FAST:%=tests/test_%.py)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/hadolint deploy/Dockerfile

# Pages in docs/ and docstrings become build/site; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . build/site

# The mark is newer than the set-up files once everything is installed.
$(VENV)/installed: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
