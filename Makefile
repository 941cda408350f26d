.DEFAULT_GOAL := help
PYTHON ?= python3
RUN := .venv/bin/
PROTO := quire_engine/rpc/engine.proto

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z0-9-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Use
.PHONY: install serve bench
install: .venv/installed ## Create .venv with the locked versions
.venv/installed: pyproject.toml requirements.lock
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --python .venv --quiet --require-hashes requirements.lock
	.venv/bin/uv pip install --python .venv --quiet --no-deps -e .
	@touch $@
serve: .venv/installed ## Serve a real chat model: OpenAI endpoint on port 8000 (ARGS="--port 9000 ...")
	@exec $(RUN)quire serve $(ARGS)
bench: .venv/installed ## Measure the demo model against transformers, on this machine
	$(RUN)quire bench compare $(ARGS)

##@ Development
.PHONY: test lint fix generate
test: lint ## Lint, then every test that this machine can run
	$(RUN)pytest -n 2 --dist loadfile $(ARGS)
lint: .venv/installed ## Format, lint, types, import contracts, generated files
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports
fix: .venv/installed ## Format, and apply safe lint fixes
	$(RUN)ruff check --fix .
	$(RUN)ruff format .
generate: .venv/installed ## Rebuild what is generated: gRPC stubs, requirements.lock, chart files, manifests
	$(RUN)python -m grpc_tools.protoc -I engine --python_out=engine --pyi_out=engine \
	  --grpc_python_out=engine $(PROTO)
	PYTHONPATH=charts $(RUN)python -m chart_tools
	$(RUN)uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
	  --generate-hashes --no-header -o requirements.lock pyproject.toml
