PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Fewer log lines from TensorFlow; the scripts print what matters.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo demo-multi-organ demo-embryo test clean

demo: $(VENV)/installed
	$(BIN)/python train_fetal_head.py --level=2

demo-multi-organ: $(VENV)/installed
	$(BIN)/python train_multi_organ.py

demo-embryo: $(VENV)/installed
	$(BIN)/python train_embryo.py

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 --dist=loadfile

# The mark is newer than the set-up files once everything is installed.
$(VENV)/installed: setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
