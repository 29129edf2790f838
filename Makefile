# make demo   sets up .venv, trains on real video, draws what the model reconstructs
# make test   sets up .venv with the originals beside it, checks style, runs all tests
# make chaos  hurts tiny runs in all the ways of tests/chaos, and writes down what became of them
# make plan-table  compiles the train step of every model for TPU pods; no TPU needed, 20 to 90 minutes
# make clean  removes the environment, never a run
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --disable-pip-version-check
WORKDIR ?= runs/demo

.PHONY: demo test lint chaos plan-table clean

demo: .venv/run.done
	.venv/bin/python train.py --config=configs/demo.py --workdir=$(WORKDIR)

test: .venv/dev.done lint
	.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/dev.done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

chaos: .venv/dev.done
	.venv/bin/python -m tests.chaos --out benchmarks/results/chaos_cpu.json \
	  --page benchmarks/results/chaos.md

plan-table: .venv/dev.done
	PYTHONPATH=. .venv/bin/python benchmarks/plan_table.py

.venv/run.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

.venv/dev.done: requirements-dev.txt .venv/run.done
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv build *.egg-info
