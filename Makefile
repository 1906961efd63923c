# Every target works from a fresh clone: the virtual environment is made on first use.
# .venv/run and .venv/test are stamps: the extras, and the test tools on top of them.
PYTHON ?= python3.11
BIN := .venv/bin
# Two single-thread processes are faster than one process with two threads.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-all lint figures experiments clean

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

experiments: .venv/run
	for claim in first_light batchnorm_law effective_penalties mini_batches; do \
		$(BIN)/python experiments/$$claim.py --out runs/experiments || exit 1; done

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

.venv/test: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group test --group lint
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
