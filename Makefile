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

##@ Cluster
CLUSTER := PYTHONPATH=tests/cluster:tests/support $(RUN)python -m local_cluster
.PHONY: cluster-tools cluster demo
cluster-tools: .venv/installed ## Install and build what a local Kubernetes needs, once (root, Debian)
	@$(CLUSTER) tools
cluster: .venv/installed ## Run a local Kubernetes of two nodes until Ctrl-C
	@$(CLUSTER) up
demo: .venv/installed ## On such a cluster: build images, install the chart, deploy a model, chat
	@$(CLUSTER) demo

##@ Development
.PHONY: browser test soak lint fix generate screenshots
browser: ## Install the Chromium that tests of the page drive, once (root, Debian)
	@command -v chromium >/dev/null || { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive \
	  apt-get install --yes --quiet=2 --no-install-recommends chromium fonts-dejavu-core; }
	@echo "browser: ready, $$(chromium --version 2>/dev/null)"
# Cluster tests run on their own: they time what both cores do.
test: lint ## Lint, then every test that this machine can run
	$(RUN)pytest -n 2 --dist loadfile --ignore tests/cluster $(ARGS)
	$(RUN)pytest tests/cluster -m "not soak" $(CLUSTER_ARGS)
soak: .venv/installed ## Break a real cluster, roll out on it, run the README on it: what takes long
	$(RUN)pytest tests/cluster -m soak $(CLUSTER_ARGS)
lint: .venv/installed ## Format, lint, types, import contracts, generated files
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports
fix: .venv/installed ## Format, and apply safe lint fixes
	$(RUN)ruff check --fix .
	$(RUN)ruff format .
screenshots: .venv/installed ## Take the README's pictures of the page anew
	QUIRE_SCREENSHOTS=docs/images $(RUN)pytest tests/page/test_demo.py
generate: .venv/installed ## Rebuild what is generated: gRPC stubs, requirements.lock, chart files, manifests
	$(RUN)python -m grpc_tools.protoc -I engine --python_out=engine --pyi_out=engine \
	  --grpc_python_out=engine $(PROTO)
	PYTHONPATH=charts $(RUN)python -m chart_tools
	$(RUN)uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
	  --generate-hashes --no-header -o requirements.lock pyproject.toml
