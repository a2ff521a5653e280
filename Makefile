# Everything happens in .venv, made from nothing but Python, pip and make.
PYTHON ?= python3
BIN := .venv/bin
# A folder of wheels that pip is configured to look into, if any, is looked into by uv too.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
# Without such a folder, uv takes the build of torch that fits the machine: CPU where there is no GPU.
ifeq ($(strip $(UV_FIND_LINKS)),)
export UV_TORCH_BACKEND ?= auto
endif

# Bytecode is kept, or each process of the tests would compile all libraries anew.
export PYTHONDONTWRITEBYTECODE =

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

.PHONY: demo check test scheduled fuzz lint docs dist clean constraints

demo: .venv/installed  ## Train on the built-in digits, sample them, and have them recognised: about five minutes.
	$(BIN)/patch-diffusion train digits --preset digits --out runs/digits
	$(BIN)/patch-diffusion sample runs/digits --seeds 0-299 --out runs/digits/generated --grid runs/digits/digits.png
	$(BIN)/python examples/recognise_digits.py runs/digits/generated
	@echo "the run is in runs/digits, the pictures in runs/digits/generated, all in one in runs/digits/digits.png"

check: .venv/installed  ## The fast tests, under a minute on two cores, and lint.
	$(BIN)/pytest -n auto --dist loadfile -m "not slow"
	$(MAKE) lint

test: .venv/installed  ## The whole test suite, but for the scheduled tests.
	$(BIN)/pytest -n auto --dist loadfile

scheduled: .venv/installed  ## The tests that take very long, for a schedule.
	$(BIN)/pytest -m scheduled

fuzz: .venv/installed  ## 2,000 hostile files, options and requests, others each time; prints the number of cases by outcome.
	PATCH_DIFFUSION_FUZZ_CASES=2000 PATCH_DIFFUSION_FUZZ_SEED=$$(date +%s) $(BIN)/pytest tests/test_fuzz.py

lint: .venv/linters  ## Format, lint, types, the direction of imports, and how docstrings begin.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python docs/words.py
	$(BIN)/pyright

docs: .venv/installed  ## The pages of docs/ and a reference of the public names as a site.
	$(BIN)/python docs/site/pages.py
	$(BIN)/zensical build --strict --config-file build/docs/mkdocs.yml
	@echo "the site is in build/docs/site: open build/docs/site/index.html"

dist: .venv/installed  ## The sdist and the wheel that it makes, in dist/.
	rm -rf dist
	$(BIN)/uv build --quiet --python $(BIN)/python --no-build-isolation

clean:  ## Remove the environment and what demo, docs and dist made.
	rm -rf .venv runs build dist

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv --constraint constraints.txt
	$(INSTALL) --editable '.[test]'
	touch $@

.venv/linters: .venv/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

constraints:  ## Newest versions that fit together, with torch and pillow as they are.
	grep -E '^(#|uv==|torch==)' constraints.txt > constraints.new
	grep -E '^(torch|pillow)==' constraints.txt | $(BIN)/uv pip compile pyproject.toml --extra dev --universal \
		--python-version 3.10 --no-annotate --no-header --quiet --constraint - \
		| grep -vE '^(nvidia|cuda|triton|torch[= ])' >> constraints.new
	mv constraints.new constraints.txt
