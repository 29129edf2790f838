# make demo   sets up .venv, trains on real video, draws what the model reconstructs
# make finetune-demo  trains a classifier of motions from scratch, tests it on videos of another clip
# make test   sets up .venv with the originals beside it, checks style, runs all tests
# make docs   runs the notebooks in an empty environment, renders them and the pages: build/docs/html
# make test-all  runs all tests on each Python that is promised; before versions or flags change
# make chaos  hurts tiny runs in all the ways of tests/chaos, and writes down what became of them
# make bench  measures ours beside transformers, as this machine can, and renders benchmarks/README.md
# make compiled-gradients  compiles tiny models of 50 odd shapes as users do; their gradients against torch's
# make plan-table  compiles the train step of every model for TPU pods; no TPU needed, 20 to 90 minutes
# make clean  removes the environments and what was built, never a run
#
# Another Python, in an environment of its own: make PYTHON=python3.12 VENV=.venv-3.12 test
VENV ?= .venv
PYTHON ?= $(shell test -x $(VENV)/bin/python && echo $(VENV)/bin/python || echo python3)
PYTHONS ?= 3.11 3.12 3.13
WORKDIR ?= runs/demo
FINETUNE_WORKDIR ?= runs/finetune_demo
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
VERSION = import sys; print("%d.%d" % sys.version_info[:2])

.PHONY: demo finetune-demo test lint docs test-all chaos bench compiled-gradients plan-table clean \
  same-python

demo: $(VENV)/run.done
	$(VENV)/bin/python train.py --config=configs/demo.py --workdir=$(WORKDIR)

finetune-demo: $(VENV)/run.done
	$(VENV)/bin/python train.py --config=configs/finetune_demo.py --workdir=$(FINETUNE_WORKDIR)

test: $(VENV)/dev.done lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/docs.done
	$(VENV)/bin/python docs/build.py

test-all:
	for version in $(PYTHONS); do \
	  $(MAKE) PYTHON=python$$version VENV=.venv-$$version test || exit; done

chaos: $(VENV)/dev.done
	$(VENV)/bin/python -m tests.chaos --out benchmarks/results/chaos_cpu.json \
	  --page benchmarks/results/chaos.md

bench: $(VENV)/dev.done
	PYTHONPATH=. $(VENV)/bin/python benchmarks/bench.py

compiled-gradients: $(VENV)/dev.done
	$(VENV)/bin/python tests/compiled_gradients.py

plan-table: $(VENV)/dev.done
	PYTHONPATH=. $(VENV)/bin/python benchmarks/plan_table.py

# An environment is made by the Python that is named, and not used for another.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV)

same-python: $(VENV)/bin/python
	@found=$$($(VENV)/bin/python -c '$(VERSION)') && asked=$$($(PYTHON) -c '$(VERSION)') && \
	if [ $$found != $$asked ]; then \
	  echo "$(VENV) is of Python $$found, $(PYTHON) is $$asked: remove it with make clean," \
	    "or keep both with make VENV=.venv-$$asked ..."; exit 1; \
	fi

$(VENV)/run.done: requirements.txt pyproject.toml $(VENV)/bin/python | same-python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/dev.done: requirements-dev.txt $(VENV)/run.done
	$(PIP) -r requirements-dev.txt
	touch $@

$(VENV)/docs.done: requirements-docs.txt $(VENV)/run.done
	$(PIP) -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(PYTHONS:%=.venv-%) build *.egg-info
