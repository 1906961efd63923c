# Every target works from a fresh clone: the virtual environment is made on first use.
# .venv/run and .venv/test are stamps: what the demo needs; all extras and the test tools on top of it.
PYTHON ?= python3.11
BIN := .venv/bin
# Two single-thread processes are faster than one process with two threads.
export OMP_NUM_THREADS := 1

CLAIMS := collapse_line first_light mini_batches networks batchnorm_law effective_penalties weights paper_settings \
	controls optimiser revival everyday generalisation

.PHONY: demo test test-all lint figures evidence evidence-smoke bench clean

demo: .venv/run
	$(BIN)/collapsekit train --out runs --resume

test: .venv/test
	$(BIN)/python -m pytest -n 2

test-all: lint
	COLLAPSEKIT_TESTS=all $(BIN)/python -m pytest -n 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: .venv/run
	$(BIN)/collapsekit train --out runs --resume
	$(BIN)/python docs/make_figures.py
	$(BIN)/python docs/make_solver_figures.py
	PYTHONPATH=experiments $(BIN)/python -m _tools.summary

# Hours of work at full size; what is in runs/experiments already is not trained again.
evidence: .venv/test
	for claim in $(CLAIMS); do $(BIN)/python experiments/$$claim.py --out runs/experiments || exit 1; done
	$(BIN)/python experiments/solver_certified.py
	$(BIN)/python experiments/solver_landscape.py
	PYTHONPATH=experiments $(BIN)/python -m _tools.summary

# The same at smoke size: minutes, nothing is written, the bands of the smoke size must hold.
evidence-smoke: .venv/test
	PYTHONPATH=experiments $(BIN)/python -m _tools.smoke $(CLAIMS)

bench: .venv/test
	mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks -q --benchmark-enable --benchmark-timer=time.process_time --benchmark-json=.benchmarks/latest.json
	$(BIN)/python benchmarks/table.py .benchmarks/latest.json

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,report,cli]'
	touch $@

.venv/test: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' \
		--group test --group lint
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
