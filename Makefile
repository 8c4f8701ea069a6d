# make demo   the main job on built-in data, in a few minutes
# make test   all tests
# make check  what CI runs: format, lint, types, import contracts, tests
# make fuzz   mutated rows and files, a million of them: some hours; FUZZ_CASES=20000 takes minutes
# Each target sets up .venv on its own; PYTHON names the interpreter, at least 3.11.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_OUT ?= ost-demo
FUZZ_CASES ?= 1000000

.PHONY: demo test check lint format fuzz clean

demo: $(READY)
	$(BIN)/ost demo --out $(DEMO_OUT) --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

check: lint test

fuzz: $(READY)
	$(BIN)/python -m tests.fuzzing --cases $(FUZZ_CASES)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; set PYTHON')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) $(DEMO_OUT) build dist
