# Two commands for a newcomer: `make quickstart` shows the whole product on this machine, `make test` checks it.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/quickstart

.PHONY: quickstart test check arm64 mutants clean

quickstart: .venv/installed
	rm -rf $(RUN)
	$(BIN)/mobilenas profile --data digits --plan quick
	$(BIN)/mobilenas search --config docs/examples/quickstart-search.toml --latency-budget 40% --output $(RUN)
	$(BIN)/mobilenas train $(RUN) --config docs/examples/quickstart-train.toml
	$(BIN)/mobilenas export $(RUN) --onnx

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m "not serial and not gpu and not device and not arm64"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "serial and not gpu and not device and not arm64"

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

arm64: .venv/installed .arm64/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m arm64

mutants: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/mutants.py --sample 200 --cpu-hours 3

clean:
	rm -rf .venv .arm64 runs dist build

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

.arm64/python: tests/devices/arm64_root.sh | .venv/installed
	tests/devices/arm64_root.sh .arm64 $(BIN)/python
