# make demo   sets up and teaches a small model to see rooms (8 to 16 minutes on two CPU cores, no GPU)
# make test   sets up and runs the tests
# make bench  sets up and compares speed with PyTorch at small sizes
# make bench-gpu  the same at full size, on a GPU as large as an H200; keeps the records
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
RUN := runs/demo
RECORD := scripts/bench/results/$(shell date +%F)
FEATURES := --config.data.features.folder=$(RUN)/features --config.data.features.dtype=float32

# Two tests at a time; those of a file in one process, for they share what they have made.
PARALLEL := -n 2 --dist loadfile --durations 20

# glibc hands large blocks back to the system after every update; keeping them saves a fifth of the
# demo's time.
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 68719476736
demo: export MALLOC_TOP_PAD_ = 67108864

.PHONY: demo test test-slow bench bench-gpu lint clean

demo: $(VENV)/.run
	$(PY) -m jaxvlm.rooms --output $(RUN)/rooms
	$(PY) -m jaxvlm.cache_features --config configs/demo.py $(FEATURES)
	$(PY) -m jaxvlm.train --config configs/demo.py --workdir $(RUN) $(FEATURES)
	$(PY) -m jaxvlm.evaluate --checkpoint $(RUN) --split test --output $(RUN)/evaluation

test: $(VENV)/.test
	$(PY) -m pytest -m "not slow" $(PARALLEL)

test-slow: $(VENV)/.test
	$(PY) -m pytest -m slow $(PARALLEL)

bench: $(VENV)/.test
	$(PY) scripts/bench/vggt.py --size small --views 1,2 --pixels 224 --rounds 2 --no-compiled
	$(PY) scripts/bench/train_step.py --size 10m --pixels 112 --questions 12 --row_length 512 --rows 2 --rounds 2 --repeats 2
	$(PY) scripts/bench/generate.py --size 10m --batches 1,16 --new 32 --rounds 1
	$(PY) scripts/bench/data.py --scenes 6 --workers 1 --seconds 2 --repeats 1

bench-gpu: $(VENV)/.gpu
	$(PY) scripts/bench/vggt.py --output $(RECORD)-vggt-gpu.json
	$(PY) scripts/bench/train_step.py --size 4b --views 1,8 --per_set 1,8 --remat none,dots,full --compiled --output $(RECORD)-train-step-gpu.json
	$(PY) scripts/bench/generate.py --size 4b --output $(RECORD)-generate-gpu.json
	$(PY) scripts/bench/generate.py --size 4b --batches 16,64 --ragged --output $(RECORD)-generate-ragged-gpu.json
	$(PY) scripts/bench/constrain.py --size 4b --output $(RECORD)-constrain-gpu.json

lint: $(VENV)/.test
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

# The stamps are older than what they were made from only when something changed.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	touch $(VENV)/.run $@

$(VENV)/.gpu: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test,cuda12]
	touch $(VENV)/.run $(VENV)/.test $@

clean:
	rm -rf $(VENV) .cache/tests runs/demo
